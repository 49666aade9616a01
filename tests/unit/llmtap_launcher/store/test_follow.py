"""Following: passes until told to stop, trouble stated once and outlived, a last pass at the end."""

from __future__ import annotations

import errno
import gzip
import logging
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.store.database import NewerSchema
from llmtap_launcher.store.follow import Stop, explain, follow, trouble_of
from llmtap_launcher.store.status import StatusFile, read_status
from llmtap_launcher.store.writer import Writer
from support.records import begin, end, sink


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with closing(Writer(tmp_path)) as made:
        yield made


@pytest.fixture
def signals() -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Steps:
    """Stands for `Stop`: each wait takes the next step, the last one stops."""

    def __init__(self, *steps: Callable[[], object], orphaned: bool = False) -> None:
        self._steps, self._orphaned = list(steps), orphaned
        self.asked = self.orphaned = False
        self.pauses: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        if self._steps:
            self._steps.pop(0)()
            return False
        self.orphaned, self.asked = self._orphaned, not self._orphaned
        return True


def run(writer: Writer, steps: Steps, tmp_path: Path, pause: Callable[[float], object] | None = None) -> bool:
    return follow(writer, steps, StatusFile(tmp_path), pause=pause)  # type: ignore[arg-type]


def test_takes_what_comes_and_makes_a_last_pass(tmp_path: Path, writer: Writer) -> None:
    spool = sink(tmp_path)
    assert run(writer, Steps(lambda: spool.write_begin(begin()), lambda: spool.write_end(end())), tmp_path)
    spool.close()
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.ingested_records, status.pid) == ("stopped", 2, os.getpid())


def test_trouble_is_said_once_and_ends_by_itself(tmp_path: Path, writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    database = tmp_path / "capture.db"
    database.write_bytes(b"no database at all" * 100)
    spool = sink(tmp_path)
    spool.write_begin(begin())
    told: list[str | None] = []

    def look() -> None:
        status = read_status(tmp_path)
        assert status is not None
        told.append(status.error)

    steps = Steps(look, look, database.unlink, lambda: None)
    assert run(writer, steps, tmp_path)
    spool.close()
    message = (
        f"{database}: file is not a database: move it away and a new one is begun, or make it again: llmtap "
        "ingest --rebuild; captures wait in the spool"
    )
    assert told[0] == message
    assert [r.getMessage() for r in caplog.records] == [message, "working again"]
    assert steps.pauses == [0.5, 1.0, 2.0, 0.05, 0.05], "growing pauses while it lasts"
    assert writer.status.ingested_records == 1


def test_trouble_to_the_end_is_a_failure_with_its_reason(tmp_path: Path, writer: Writer) -> None:
    (tmp_path / "capture.db").write_bytes(b"no database at all" * 100)
    assert not run(writer, Steps(), tmp_path)
    status = read_status(tmp_path)
    assert status is not None
    assert status.state == "error"
    assert "not a database" in (status.error or "")


def test_a_defect_of_ours_is_outlived_too(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("llmtap_launcher.store.writer.scan", lambda _: 1 / 0)
        assert not run(writer, Steps(), tmp_path)
    assert "ZeroDivisionError" in caplog.text
    assert writer.run_pass() == 0


def test_an_orphan_waits_a_moment_for_the_locks_of_its_dead_parent(tmp_path: Path, writer: Writer) -> None:
    spool = sink(tmp_path)
    spool.write_begin(begin())
    assert run(writer, Steps(orphaned=True), tmp_path, pause=lambda _: spool.close())
    assert writer.status.lost == 1


def test_a_signal_ends_the_wait(signals: None) -> None:
    with closing(Stop()) as stop:
        stop.listen()
        assert not stop.wait(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.wait(60)
        assert stop.asked
        assert stop.wait(60)


def test_the_end_of_the_parents_pipe_ends_the_wait() -> None:
    read, write = os.pipe()
    with closing(Stop(read)) as stop:
        os.write(write, b"anything")
        assert not stop.wait(0)
        closer = threading.Timer(0.01, os.close, (write,))
        closer.start()
        assert stop.wait(60)
        closer.join()
        assert stop.orphaned
        assert not stop.asked
    os.close(read)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            sqlite3.OperationalError("database or disk is full"),
            "DB: database or disk is full: free some disk space; captures wait in the spool",
        ),
        (
            sqlite3.OperationalError("database is locked"),
            "DB: database is locked: another program holds a lock on it; captures wait in the spool",
        ),
        (
            sqlite3.DatabaseError("database disk image is malformed"),
            "DB: database disk image is malformed: move it away and a new one is begun, or make it again: llmtap "
            "ingest --rebuild; captures wait in the spool",
        ),
        (
            sqlite3.OperationalError("attempt to write a readonly database"),
            "DB: attempt to write a readonly database: make it and its folder writable for this user; captures wait in the spool",
        ),
        (sqlite3.OperationalError("disk I/O error"), "DB: disk I/O error: captures wait in the spool"),
        (OSError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
        (LlmtapError("as it is"), "as it is"),
        (KeyError("prompt text"), "unexpected KeyError (a defect of llmtap; captures wait in the spool)"),
    ],
)
def test_errors_are_one_line_with_their_mend(writer: Writer, error: Exception, said: str) -> None:
    assert explain(error, writer) == said.replace("DB", str(writer.database))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sqlite3.OperationalError("database or disk is full"), "disk_full"),
        (sqlite3.OperationalError("database is locked"), "locked"),
        (sqlite3.DatabaseError("database disk image is malformed"), "corrupt"),
        (sqlite3.DatabaseError("file is not a database"), "corrupt"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "read_only"),
        (sqlite3.OperationalError("unable to open database file"), "read_only"),
        (sqlite3.OperationalError("disk I/O error"), "unreadable"),
        (sqlite3.OperationalError("no such table: x"), "other"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EROFS, "Read-only file system"), "read_only"),
        (OSError(errno.EIO, "Input/output error"), "unreadable"),
        (NewerSchema("newer"), "newer_schema"),
        (KeyError("x"), "other"),
    ],
)
def test_kinds_of_trouble(error: Exception, kind: str) -> None:
    assert trouble_of(error) == kind


def test_the_kind_is_told_and_taken_back(tmp_path: Path, writer: Writer) -> None:
    (tmp_path / "capture.db").write_bytes(b"no database at all" * 100)
    seen: list[str | None] = []

    def look() -> None:
        status = read_status(tmp_path)
        assert status is not None
        seen.append(status.trouble)

    assert run(writer, Steps(look, (tmp_path / "capture.db").unlink, look), tmp_path)
    look()
    assert seen[0] == "corrupt"
    assert seen[-1] is None


def test_an_old_database_keeps_nobody_waiting(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    old = next((Path(__file__).parents[4] / "fixtures" / "databases").glob("*.db.gz"))
    (tmp_path / "capture.db").write_bytes(gzip.decompress(old.read_bytes()))
    seen: list[object] = []
    whole = writer.run_pass

    def look() -> int:
        seen.append(read_status(tmp_path))
        return whole()

    monkeypatch.setattr(writer, "run_pass", look)
    assert run(writer, Steps(), tmp_path)
    assert seen[0] is not None
