"""How long each page takes on a large database: `python tests/bench/pages.py [--exchanges N] [--dir DIR]`.

Makes a capture database of N exchanges (conversations of some turns over 60 days, five keys, three models, 1 % errors) with
the writer's own code, starts Datasette on it, and asks for each page three times: the slowest counts. Beside it the processor
time of the slowest, which says more where other programs run. Then the memory of the Datasette process, and of a writer that
takes in some thousand more exchanges. `--dir` keeps the database there and uses it again; `make test-long` runs it on a million.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("addons", "launcher", "tests", "tests/bench")]

import orjson  # noqa: E402
from store import text  # noqa: E402
from ulid import ULID  # noqa: E402

from llmtap.core.record import Begin, Choice, End, Summary, Usage, encode  # noqa: E402
from llmtap.spool.segment import Segment  # noqa: E402
from llmtap.spool.writer import SegmentWriter  # noqa: E402
from llmtap_launcher.store.database import connect_ro, open_writer  # noqa: E402
from llmtap_launcher.store.ingest import Ingester, Item  # noqa: E402
from support.datasette_server import serve  # noqa: E402

DAYS = 60
MODELS = ("qwen3-8b", "qwen3-8b", "llama-3.1-8b", "mistral-7b")
TARGET_S = 1.0
#: exchanges the writer gets at the end
MORE = 20_000


def records(n: int, dice: random.Random) -> Iterator[bytes]:
    """Both records of `n` exchanges, in the order of their time."""
    start_us, step_us = 1_763_000_000_000_000, DAYS * 86_400_000_000 // n
    made = 0
    while made < n:
        history: list[dict[str, Any]] = [{"role": "system", "content": "You are a helpful assistant."}]
        key, model = f"team-{dice.randrange(5)}", dice.choice(MODELS)
        for _ in range(min(dice.randint(1, 6), n - made)):
            history.append({"role": "user", "content": text(dice, dice.randint(80, 700))})
            reply, tokens = text(dice, dice.randint(200, 900)), dice.randint(20, 400)
            at, uid = start_us + made * step_us, str(ULID())
            body = orjson.dumps({"model": model, "messages": history, "stream": True})
            failed = dice.random() < 0.01
            yield encode(
                Begin(
                    uid,
                    at,
                    "w0",
                    "POST",
                    "/v1/chat/completions",
                    "chat",
                    key_name=key,
                    model=model,
                    stream=True,
                    request_bytes=len(body),
                    body=body,
                    body_is_json=True,
                )
            )
            summary = Summary(
                f"chatcmpl-{made}",
                model,
                [] if failed else [Choice(0, content=reply, finish_reason="stop")],
                Usage(len(body) // 4, tokens, source="upstream"),
                complete=True,
            )
            ttft = dice.lognormvariate(5.2, 0.5)
            yield encode(
                End(
                    uid,
                    at + 1_000_000,
                    "upstream_error" if failed else "ok",
                    status=502 if failed else 200,
                    backend="ab"[made % 2],
                    attempts=1,
                    content_type="text/event-stream",
                    summary=summary,
                    queue_ms=0.1,
                    ttft_ms=ttft,
                    duration_ms=ttft + tokens * 22,
                    overhead_ms=0.3,
                    chunks=tokens,
                    response_bytes=tokens * 200,
                    deltas=[round(ttft * 10), *(dice.randrange(150, 320) for _ in range(12))],
                )
            )
            history.append({"role": "assistant", "content": reply})
            made += 1


def fill(path: Path, n: int) -> None:
    """The database, by batches as the writer makes them."""
    segment, dice = Segment("w0", "bench", 1), random.Random(11)
    with closing(open_writer(path)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        ingester, batch = Ingester(conn), []
        for number, record in enumerate(records(n, dice), 1):
            batch.append(Item(segment, 0, record))
            if number % 1000 == 0 or number == 2 * n:
                conn.execute("BEGIN")
                applied = ingester.apply(batch)
                assert not applied.poison, applied.poison[0].reason
                conn.execute("COMMIT")
                batch = []
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def pages(path: Path) -> dict[str, str]:
    """What is asked for, by name."""
    with closing(connect_ro(path)) as conn:
        (uid,) = conn.execute("SELECT uid FROM exchanges WHERE n_messages > 6 ORDER BY id DESC LIMIT 1").fetchone()
        (talk,) = conn.execute("SELECT id FROM conversations ORDER BY n DESC LIMIT 1").fetchone()
    return {
        "landing": "/capture/requests",
        "landing, one model": "/capture/requests?model=qwen3-8b",
        "landing, one key": "/capture/requests?key_name=team-1",
        "landing, succeeded": "/capture/requests?status=200",
        "landing, errors": "/capture/requests?outcome=upstream_error",
        "landing, nothing found": "/capture/requests?finish_reason=length",
        "landing, since a day": "/capture/requests?started_at__gt=2026-01-10",
        "transcript": f"/-/transcript/{uid}",
        "conversation": f"/-/conversation/{talk}",
        "conversations": "/capture/conversations",
        "search, rare words": "/capture/search?q=surrogateescape",
        "search, common words": "/capture/search?q=the+object",
        "dashboard, a day": "/-/dashboard",
        "dashboard, a week": "/-/dashboard?range=7d",
        "dashboard, a year": "/-/dashboard?range=1y",
        "slow": "/capture/slow",
        "slow, one key": "/capture/slow?key=team-1",
        "errors": "/capture/errors",
        "latency": "/capture/latency",
        "latency, 30 days": "/capture/latency?hours=720",
        "tokens per hour": "/capture/tokens_per_hour",
        "cost": "/capture/cost",
        "compare": "/capture/compare?hours=720",
    }


def more(folder: Path, n: int) -> None:
    """The writer's process on a spool of `n` further exchanges: how fast, and its memory at most."""
    spool = SegmentWriter(folder / "spool", "w0", str(ULID()), 100_000_000)
    for record in records(n, random.Random()):
        spool.append(record)
    spool.close()
    argv = [sys.executable, "-m", "llmtap_launcher", "ingest", "--dir", str(folder)]
    started = time.perf_counter()
    process = subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:2])}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the writer ended with {process.returncode}")
    cpu = used.ru_utime + used.ru_stime
    print(
        f"the writer: {n:,} more exchanges in {time.perf_counter() - started:.1f} s ({cpu:.1f} s of CPU), "
        f"{used.ru_maxrss / 1000:.0f} MB of memory at most"
    )


def main() -> None:
    """Prints a line a page; exit status 1 when one takes longer than a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--dir", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.dir or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "capture.db"
        if not path.exists():
            started = time.perf_counter()
            fill(path, options.exchanges)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            print(f"filled in {time.perf_counter() - started:.0f} s, peak memory {peak:.0f} MB")
        with closing(connect_ro(path)) as conn:
            (count,) = conn.execute("SELECT count(*) FROM exchanges").fetchone()
        print(f"{count:,} exchanges, {path.stat().st_size / 1e9:.2f} GB")
        slow = 0
        with serve(path, Path(scratch) / "log") as server:
            for name, address in pages(path).items():
                took, used, size = 0.0, 0.0, 0
                for _ in range(3):
                    started, before = time.perf_counter(), _cpu_s(server.pid)
                    answer = server.http.get(address, follow_redirects=True)
                    took, size = max(took, time.perf_counter() - started), len(answer.content)
                    used = max(used, _cpu_s(server.pid) - before)
                    assert answer.status_code == 200, (name, answer.status_code, answer.text[:500])
                slow += took > TARGET_S
                print(f"{name:24} {took * 1000:7.0f} ms {used * 1000:7.0f} ms of CPU {size / 1000:6.0f} kB")
            print(f"Datasette's memory: {_memory_mb(server.pid):.0f} MB")
        more(folder, max(1, min(MORE, count // 10)))
    sys.exit(1 if slow else 0)


def _cpu_s(pid: int) -> float:
    """Processor time of a process, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    return 0.0


if __name__ == "__main__":
    main()
