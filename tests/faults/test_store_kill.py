"""kill -9 at random of whoever captures, whoever stores, or both, also while one of them is stopped (SIGSTOP): every
acknowledged record is in the database, none twice."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import orjson
import pytest

from llmtap_launcher.store.checksum import checksums
from llmtap_launcher.store.database import connect_ro, open_writer
from llmtap_launcher.store.status import read_status
from support import producer
from support.size import size
from support.wait import eventually

KILLS = size("LLMTAP_STORE_KILLS", 12, 200)
KINDS = ("gateway", "writer", "both", "frozen", "frozen, killed")
_INGEST = [sys.executable, "-m", "llmtap_launcher", "ingest", "--config"]
#: everything is kept: the archive has to have all of it
_KEEP = {name: 0 for name in ("retain_days", "retain_bodies_days", "retain_timings_days")} | {"archive_days": 3650}


class Producer:
    """A producer process and what it has acknowledged."""

    def __init__(self, directory: Path, boot: str, begun: set[str], ended: set[str]) -> None:
        # its acknowledgements fill a pipe: when nobody reads on, it stops, so it never runs far ahead
        argv = [sys.executable, producer.__file__, str(directory), boot]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.acknowledged = 0
        self._begun, self._ended = begun, ended
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, uid = line.strip().partition(" ")
            (self._begun if kind == "b" else self._ended).add(uid)
            self.acknowledged += 1

    def produce(self, records: int) -> None:
        """Waits for so many more records."""
        until = self.acknowledged + records
        eventually(lambda: self.acknowledged >= until, "the producer stands still", 60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class WriterProcess:
    """The writer, as the launcher runs it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.process = subprocess.Popen([*_INGEST, str(directory / "llmtap.json"), "--follow"], stderr=subprocess.DEVNULL)

    def running(self) -> bool:
        assert self.process.poll() is None, "the writer ended by itself"
        status = read_status(self._directory)
        return status is not None and status.pid == self.process.pid

    def freeze(self) -> None:
        """SIGSTOP, wherever it is: it may hold the lock, a segment, half a transaction."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def chains(conn: sqlite3.Connection) -> dict[str, tuple[str, str | None, str | None]]:
    """uid: outcome, what was asked, what was answered."""
    return {
        row["uid"]: (row["outcome"], row["asked"], row["answered"])
        for row in conn.execute(
            "SELECT e.uid, e.outcome, qb.text AS asked, ab.text AS answered FROM exchanges e "
            "JOIN messages q ON q.hash = e.input_tip JOIN bodies qb ON qb.id = q.body_id "
            "LEFT JOIN messages a ON a.hash = e.output_tip AND a.parent_id = q.id LEFT JOIN bodies ab ON ab.id = a.body_id"
        )
    }


@pytest.mark.faults
@pytest.mark.timeout(300 + 10 * KILLS)
def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    chance = random.Random(seed)
    begun: set[str] = set()
    ended: set[str] = set()
    boots = 0

    def produce() -> Producer:
        nonlocal boots
        boots += 1
        return Producer(tmp_path, f"boot{boots}", begun, ended)

    settings = {"backends": [{"name": "a", "url": "http://127.0.0.1:1"}], "capture": {"dir": str(tmp_path)}, "store": _KEEP}
    (tmp_path / "llmtap.json").write_bytes(orjson.dumps(settings))
    with ExitStack() as stack:
        source, writer = produce(), WriterProcess(tmp_path)
        stack.callback(lambda: (source.kill(), writer.kill()))
        rounds: Counter[str] = Counter()
        for number in range(KILLS):
            source.produce(chance.randrange(1, 1500))
            # every kind has its turn, however few rounds there are
            what = KINDS[number] if number < len(KINDS) else chance.choice(KINDS)
            rounds[what] += 1
            if what in ("writer", "both") and chance.random() < 0.8:  # the others die while starting
                eventually(writer.running, "the writer does not start", 60)
            if what.startswith("frozen"):
                writer.freeze()
                source.produce(chance.randrange(1, 1500))  # who captures does not wait for who stores
            if what in ("writer", "both", "frozen, killed"):
                writer.kill()
            if what in ("gateway", "both"):
                source.kill()
                source = produce()
            if what in ("writer", "both", "frozen, killed"):
                writer = WriterProcess(tmp_path)
            elif what == "frozen":
                writer.thaw()
        print(f"{KILLS} rounds: {dict(rounds)}, {len(begun)} exchanges acknowledged")
        source.kill()
        eventually(lambda: not list((tmp_path / "spool").glob("*.jsonl")), "the spool does not drain", 120)
        assert writer.stop() == 0

    with closing(connect_ro(tmp_path / "capture.db")) as conn:
        found = chains(conn)
        assert [r[0] for r in conn.execute("PRAGMA integrity_check")] == ["ok"]
        assert conn.execute("SELECT count(*), count(DISTINCT uid) FROM exchanges").fetchone()[:] == (len(found), len(found))
        assert conn.execute("SELECT count(*) FROM segments WHERE finished_at IS NULL").fetchone()[0] == 0
        (timed,) = conn.execute("SELECT count(*) FROM token_timings").fetchone()
    assert len(begun) > 1000
    assert begun <= found.keys()
    assert len(found) - len(begun) <= boots, "at most the one record that a killed producer could not acknowledge"
    answered = {uid for uid, (outcome, _, _) in found.items() if outcome == "ok"}
    assert ended <= answered
    assert timed == len(answered)
    for uid, row in found.items():
        never = int(uid.rpartition(".")[2]) % producer.NEVER_ENDS == 0
        assert row == (("lost", f"ask {uid}", None) if never or uid not in answered else ("ok", f"ask {uid}", f"answer {uid}"))
    bad = (tmp_path / "quarantine.jsonl").read_bytes().splitlines() if (tmp_path / "quarantine.jsonl").exists() else []
    assert {orjson.loads(line)["reason"] for line in bad} <= {"torn"}
    with closing(open_writer(tmp_path / "capture.db")) as conn:
        conn.execute("INSERT INTO bodies_fts(bodies_fts, rank) VALUES ('integrity-check', 1)")
    rebuilt_equals_live(tmp_path)


def rebuilt_equals_live(directory: Path) -> None:
    """Whenever the writer was killed, before a file was archived or after: the archive has it, once."""
    with closing(connect_ro(directory / "capture.db")) as conn:
        live = checksums(conn)
    config = str(directory / "llmtap.json")
    for more in (["--rebuild"], []):  # the second settles what a start settles
        done = subprocess.run([*_INGEST, config, *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (directory / "capture.old-1.db").exists()
    with closing(connect_ro(directory / "capture.db")) as conn:
        assert checksums(conn) == live
