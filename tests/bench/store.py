"""What the writer does on one core, and what the database weighs: `python tests/bench/store.py [--chats N] [--agents N]`.

Two loads, cut from prose and code: chats of about 10 kB that go on for some turns, and agent sessions whose requests resend a
history of about 70 kB. The same records also go into plain rows of raw JSON (what a log table would be) in the same run, so
sizes are ratios.
"""

from __future__ import annotations

import argparse
import random
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("addons", "launcher", "tests")]

import orjson  # noqa: E402
from ulid import ULID  # noqa: E402

from llmtap.core.record import Begin, Choice, End, Summary, ToolCall, Usage, encode  # noqa: E402
from llmtap.spool.writer import SegmentWriter  # noqa: E402
from llmtap_launcher.store.writer import Writer  # noqa: E402

START_US = 1_763_700_000_000_000
#: of the issue: exchanges a second, database over raw JSON
TARGETS = {"chat": (1000, 0.4), "agent": (500, 0.12)}

#: real prose and code that every Python has
_CORPUS = "".join([*topics.values(), *(Path(m.__file__).read_text("utf-8") for m in (argparse, tempfile, random))])


@dataclass(frozen=True)
class Result:
    """One load: exchanges a second of CPU and of wall time, bytes."""

    exchanges: int
    wall_s: float
    cpu_s: float
    database: int
    raw: int


def text(dice: random.Random, size: int) -> str:
    """`size` characters of the corpus, from anywhere in it."""
    at = dice.randrange(len(_CORPUS) - size)
    return _CORPUS[at : at + size]


def chats(n: int, dice: random.Random) -> Iterator[tuple[Begin, End]]:
    """Conversations of 1 to 9 turns below a few system prompts; a request is 10 kB on average."""
    systems = [text(dice, 1800) for _ in range(4)]
    made = talk = 0
    while made < n:
        talk += 1
        history: list[dict[str, Any]] = [{"role": "system", "content": dice.choice(systems)}]
        for _ in range(dice.randint(1, 9)):
            history.append({"role": "user", "content": text(dice, dice.randint(300, 1500))})
            reply = text(dice, dice.randint(600, 1900))
            yield _pair(made, talk, history, Choice(0, content=reply, finish_reason="stop"), dice)
            history.append({"role": "assistant", "content": reply})
            made += 1
            if made == n:
                return


def agents(n: int, dice: random.Random) -> Iterator[tuple[Begin, End]]:
    """Agent sessions of some 30 steps: a tool call, its result, again; a request is 70 kB on average."""
    tools = [
        {"type": "function", "function": {"name": f"tool_{i}", "description": text(dice, 500), "parameters": {"type": "object"}}}
        for i in range(12)
    ]
    system = text(dice, 9000)
    made = talk = 0
    while made < n:
        talk += 1
        history: list[dict[str, Any]] = [
            {"role": "system", "content": system},
            {"role": "user", "content": text(dice, dice.randint(3000, 9000))},
        ]
        for step in range(30):
            name, arguments = (
                f"tool_{step % 12}",
                orjson.dumps({"path": text(dice, 60).strip(), "body": text(dice, 300)}).decode(),
            )
            call = ToolCall(0, f"call_{made}", name=name, arguments=arguments)
            yield _pair(made, talk, history, Choice(0, tool_calls=[call], finish_reason="tool_calls"), dice, tools=tools)
            function = {"name": name, "arguments": arguments}
            history.append(
                {"role": "assistant", "content": None, "tool_calls": [{"id": call.id, "type": "function", "function": function}]}
            )
            history.append({"role": "tool", "tool_call_id": call.id, "content": text(dice, dice.randint(1500, 4500))})
            made += 1
            if made == n:
                return


def _pair(
    number: int, talk: int, messages: list[dict[str, Any]], choice: Choice, dice: random.Random, **more: Any
) -> tuple[Begin, End]:
    uid, at = str(ULID()), START_US + number * 250_000
    tokens = 120
    body = orjson.dumps({"model": "qwen3-8b", "messages": messages, "stream": True, "temperature": 0.7, **more})
    begin = Begin(
        uid,
        at,
        "w0",
        "POST",
        "/v1/chat/completions",
        "chat",
        client_ip="10.0.0.7",
        user_agent="OpenAI/Python 2.8.1",
        key_name=f"key{talk % 5}",
        model="qwen3-8b",
        stream=True,
        request_bytes=len(body),
        body=body,
        body_is_json=True,
    )
    summary = Summary(f"chatcmpl-{number}", "qwen3-8b", [choice], Usage(len(body) // 4, tokens, source="upstream"), complete=True)
    end = End(
        uid,
        at + 3_000_000,
        "ok",
        status=200,
        backend="ab"[number % 2],
        attempts=1,
        content_type="text/event-stream",
        summary=summary,
        queue_ms=0.1,
        ttft_ms=200.0 + dice.random() * 50,
        duration_ms=3000.0,
        overhead_ms=0.4,
        chunks=tokens,
        response_bytes=tokens * 250,
        deltas=[2000, *(200 + dice.randrange(60) for _ in range(tokens - 1))],
    )
    return begin, end


def measure(folder: Path, load: Iterator[tuple[Begin, End]]) -> Result:
    """Fills a spool, then times the writer on it alone; the raw rows are written afterwards."""
    spool = SegmentWriter(folder / "spool", "w0", "bench", 100_000_000)
    raw: list[bytes] = []
    count = 0
    with closing(sqlite3.connect(folder / "raw.db")) as plain:
        plain.execute("CREATE TABLE rows(id INTEGER PRIMARY KEY, request TEXT, response TEXT)")
        for begin, end in load:
            asked, answered = encode(begin), encode(end)
            spool.append(asked)
            spool.append(answered)
            plain.execute("INSERT INTO rows(request, response) VALUES (?, ?)", (asked.decode(), answered.decode()))
            count += 1
        plain.commit()
    spool.close()
    del raw
    started, used = time.perf_counter(), _cpu()
    with closing(Writer(folder)) as writer:
        writer.run_pass()
    return Result(
        count,
        time.perf_counter() - started,
        _cpu() - used,
        (folder / "capture.db").stat().st_size,
        (folder / "raw.db").stat().st_size,
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Both loads, a line each, and whether the targets are met (exit status 1 when not)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--chats", type=int, default=20_000)
    parser.add_argument("--agents", type=int, default=6_000)
    parser.add_argument("--dir", type=Path, default=None, help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    good = True
    for name, load, n in (("chat", chats, options.chats), ("agent", agents, options.agents)):
        if not n:
            continue
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            found = measure(Path(folder), load(n, random.Random(7)))
        rate, ratio = found.exchanges / found.cpu_s, found.database / found.raw
        least, most = TARGETS[name]
        good &= rate >= least and ratio <= most
        print(
            f"{name}: {found.exchanges} exchanges of {found.raw / found.exchanges / 1000:.1f} kB: {rate:,.0f}/s of CPU "
            f"(target {least}), "
            f"{found.exchanges / found.wall_s:,.0f}/s of wall time; database {found.database / 1e6:.1f} MB = "
            f"{ratio:.3f} of the raw rows "
            f"(target {most})"
        )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
