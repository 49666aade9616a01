"""Every trouble the database can be in, while the writer runs: it says which, keeps the spool, goes on once it is mended."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmtap.spool.segment import scan
from llmtap_launcher.store.database import connect_ro, open_writer
from llmtap_launcher.store.status import WriterStatus, read_status
from support.records import begin, chat, end, sink
from support.wait import eventually

pytestmark = pytest.mark.faults


class Running:
    """The writer's process on a folder, and a worker beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "capture.db"
        self.sink = sink(directory, segment_bytes=20_000)
        self.written: set[str] = set()
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "llmtap_launcher", "ingest", "--follow", "--dir", str(self.directory)]
        self.process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)

    def status(self) -> WriterStatus:
        found = read_status(self.directory)
        return found if found is not None and found.pid == self.process.pid else WriterStatus(state="stopped")

    def capture(self, n: int = 20) -> None:
        for _ in range(n):
            uid = f"u{len(self.written)}"
            self.sink.write_begin(begin(uid, chat(f"question {uid} " * 50)))
            self.sink.write_end(end(uid))
            self.written.add(uid)

    def in_trouble(self, kind: str) -> None:
        eventually(lambda: self.status().trouble == kind, f"{kind} is not stated", 60)
        assert self.status().state == "error"
        assert self.process.poll() is None

    def all_in(self, exactly: bool = True) -> None:
        """Everything captured is in the database, once, and the trouble is taken back. Not `exactly`: perhaps more."""

        def complete() -> bool:
            with closing(connect_ro(self.database)) as conn:
                rows = conn.execute("SELECT uid FROM exchanges WHERE outcome = 'ok'").fetchall()
            found = {row[0] for row in rows}
            return len(rows) == len(found) and self.written <= found and (found == self.written or not exactly)

        eventually(lambda: self.status().state == "running" and complete(), "it does not recover", 60)
        assert self.status().error is None
        assert self.status().trouble is None
        with closing(connect_ro(self.database)) as conn:
            assert [row[0] for row in conn.execute("PRAGMA integrity_check")] == ["ok"]
            (requests,) = conn.execute("SELECT sum(requests) FROM usage_daily").fetchone()
            assert requests == conn.execute("SELECT count(*) FROM exchanges WHERE outcome = 'ok'").fetchone()[0]

    def stop(self) -> None:
        self.sink.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(60)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    it = Running(tmp_path)
    try:
        eventually(lambda: it.status().state == "running", "the writer does not start", 60)
        yield it
    finally:
        it.stop()


def test_a_locked_database(running: Running) -> None:
    running.capture()
    running.all_in()
    with closing(sqlite3.connect(running.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        running.capture()
        running.in_trouble("locked")
        assert "another program holds a lock" in (running.status().error or "")
        assert scan(running.directory / "spool")
        other.execute("ROLLBACK")
    running.all_in()


def test_a_corrupted_database_that_is_moved_away(running: Running) -> None:
    running.capture()
    running.all_in()
    before = set(running.written)
    for suffix in ("-wal", "-shm"):
        Path(f"{running.database}{suffix}").unlink(missing_ok=True)
    rubbish = running.database.with_name("rubbish")
    rubbish.write_bytes(b"rubbish" * 5000)
    rubbish.replace(running.database)
    running.capture()
    running.in_trouble("corrupt")
    assert "llmtap ingest --rebuild" in (running.status().error or "")
    running.database.unlink()
    running.written -= before  # those were in the file that is gone (but for the segment that is still written to)
    running.all_in(exactly=False)


def test_a_newer_schema(running: Running) -> None:
    running.capture()
    running.all_in()
    newer = running.directory / "newer.db"
    shutil.copy(running.database, newer)
    with closing(open_writer(newer)) as conn:
        conn.execute("DELETE FROM exchanges")
        conn.execute("DELETE FROM usage_daily")
        conn.execute("INSERT INTO _sqlite_migrations(migration_set, name, applied_at) VALUES ('llmtap', 'm999_future', 'now')")
    for suffix in ("-wal", "-shm"):
        Path(f"{running.database}{suffix}").unlink(missing_ok=True)
    newer.replace(running.database)
    running.capture()
    running.in_trouble("newer_schema")
    assert "upgrade llmtap" in (running.status().error or "")
    running.database.unlink()
    running.written = {f"u{n}" for n in range(20, 40)}
    running.all_in(exactly=False)


def test_a_corrupted_segment(running: Running) -> None:
    running.process.send_signal(signal.SIGSTOP)  # so that it has not read it yet
    running.capture(60)
    path = sorted((running.directory / "spool").glob("*.jsonl"))[0]
    data = bytearray(path.read_bytes())
    at = data.index(b"question u3 ")
    data[at : at + 3] = b"XXX"
    lines = bytes(data).split(b"\n")
    lines.insert(5, os.urandom(500).replace(b"\n", b""))
    path.write_bytes(b"\n".join(lines))
    running.process.send_signal(signal.SIGCONT)
    running.written -= {"u3"}

    def told() -> bool:
        with closing(connect_ro(running.database)) as conn:
            known = {
                row["uid"]: row["input_tip"] for row in conn.execute("SELECT uid, input_tip FROM exchanges WHERE outcome = 'ok'")
            }
        return running.written <= known.keys() and running.status().bad == 2

    eventually(told, "the rest does not come in", 60)
    assert running.status().state == "running"
    with closing(connect_ro(running.database)) as conn:
        row = conn.execute("SELECT outcome, input_tip FROM exchanges WHERE uid = 'u3'").fetchone()
    assert tuple(row) == ("ok", None), "its end is sound, its begin is not"
    assert (running.directory / "quarantine.jsonl").read_bytes().count(b"\n") == 2


def test_a_writer_that_stands_still_for_a_while(running: Running) -> None:
    running.capture()
    running.all_in()
    running.process.send_signal(signal.SIGSTOP)
    running.capture(200)
    running.process.send_signal(signal.SIGCONT)
    running.all_in()


def test_a_folder_that_cannot_be_written(running: Running) -> None:
    """Held with the immutable flag where we are root (a mode stops nobody then), else with modes."""
    running.capture()
    running.all_in()
    files = [running.database, *(Path(f"{running.database}{suffix}") for suffix in ("-wal", "-shm"))]
    running.process.send_signal(signal.SIGSTOP)
    root = os.geteuid() == 0
    if root:
        done = subprocess.run(["chattr", "+i", str(running.database)], capture_output=True)
        if done.returncode:
            pytest.skip("no immutable flag on this file system")
    else:
        for path in files:
            path.chmod(0o400)
    try:
        running.process.kill()
        running.process.wait()
        running.start()
        running.capture()
        running.in_trouble("read_only")
        assert "writable for this user" in (running.status().error or "")
    finally:
        if root:
            subprocess.run(["chattr", "-i", str(running.database)], check=True)
        else:
            for path in files:
                path.chmod(0o600)
    running.all_in()
