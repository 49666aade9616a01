"""`llmtap ingest`: once and following, one writer at a time, and what it says when it cannot."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.status import read_status
from support.command import llmtap
from support.records import begin, end, sink
from support.wait import eventually

Follow = Callable[..., subprocess.Popen[str]]


run = partial(llmtap, "ingest")


def outcomes(database: Path) -> dict[str, str]:
    if not database.exists():
        return {}
    with closing(connect_ro(database)) as conn:
        return {row["uid"]: row["outcome"] for row in conn.execute("SELECT uid, outcome FROM exchanges")}


def capture(directory: Path) -> None:
    spool = sink(directory)
    spool.write_begin(begin())
    spool.write_end(end())
    spool.close()


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Follow]:
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "llmtap_launcher", "ingest", "--follow", "--dir", str(tmp_path), *args]
        started.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def running(directory: Path, process: subprocess.Popen[str]) -> bool:
    status = read_status(directory)
    return status is not None and status.pid == process.pid and status.state == "running"


def test_once(tmp_path: Path) -> None:
    capture(tmp_path)
    result = run("--dir", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'capture.db'}: 2 records ingested, 0 bad, 0 exchanges lost\n")
    assert outcomes(tmp_path / "capture.db") == {"u1": "ok"}
    assert run("--dir", tmp_path).stdout.endswith(": 0 records ingested, 0 bad, 0 exchanges lost\n")


def test_places_come_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMTAP_CONFIG", raising=False)
    capture(tmp_path / "llmtap-data")
    assert run().exit_code == 0
    assert outcomes(tmp_path / "llmtap-data" / "capture.db") == {"u1": "ok"}
    (tmp_path / "llmtap.yaml").write_text("capture: {dir: other}\nstore: {path: x.db}\n")
    capture(tmp_path / "other")
    assert run().exit_code == 0
    assert outcomes(tmp_path / "x.db") == {"u1": "ok"}
    capture(tmp_path / "third")
    assert run("--dir", "third").exit_code == 0
    assert outcomes(tmp_path / "third" / "capture.db") == {"u1": "ok"}, "--dir alone is all that is read"
    capture(tmp_path / "fourth")
    assert run("--config", "llmtap.yaml", "--dir", "fourth", "--db", "y.db").exit_code == 0
    assert outcomes(tmp_path / "y.db") == {"u1": "ok"}


def test_a_database_alone_is_brought_up_to_date(tmp_path: Path) -> None:
    fixture = Path(__file__).parents[4] / "fixtures" / "databases" / "m003.db.gz"
    (tmp_path / "capture.db").write_bytes(gzip.decompress(fixture.read_bytes()))
    assert llmtap("analyze", "--db", tmp_path / "capture.db").exit_code == 1
    assert run("--dir", tmp_path).exit_code == 0
    assert llmtap("analyze", "--db", tmp_path / "capture.db").exit_code == 0


def test_no_spool_is_said(tmp_path: Path) -> None:
    result = run("--dir", tmp_path / "typo")
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"{tmp_path / 'typo'}: there is no spool in it: nothing was captured there (--dir names another folder)\n"
    )
    assert not (tmp_path / "typo").exists()


def test_a_writer_at_work_is_said(tmp_path: Path) -> None:
    capture(tmp_path)
    with WriterLock(tmp_path) as lock:
        assert lock.acquire()
        result = run("--dir", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"a writer (process {os.getpid()}) is already at work in {tmp_path}: it brings everything in\n"


def test_trouble_is_one_line(tmp_path: Path) -> None:
    capture(tmp_path)
    (tmp_path / "capture.db").write_bytes(b"no database at all" * 100)
    result = run("--dir", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{tmp_path / 'capture.db'}: file is not a database: move it away")
    assert result.stderr.count("\n") == 1
    (tmp_path / "writer.lock").unlink()
    (tmp_path / "writer.lock").mkdir()
    result = run("--dir", tmp_path)
    assert result.stderr == f"{tmp_path / 'writer.lock'}: Is a directory: make the folder writable for this user\n"


def test_following_shows_an_exchange_at_once_and_ends_with_a_last_pass(tmp_path: Path, follow: Follow) -> None:
    process = follow()
    eventually(lambda: running(tmp_path, process), "the writer does not start")
    spool = sink(tmp_path)
    spool.write_begin(begin())
    spool.write_end(end())
    written = time.monotonic()
    eventually(lambda: outcomes(tmp_path / "capture.db") == {"u1": "ok"}, "the exchange does not appear")
    assert time.monotonic() - written < 0.5
    process.send_signal(signal.SIGSTOP)
    spool.write_begin(begin("u2"))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 0
    assert outcomes(tmp_path / "capture.db") == {"u1": "ok", "u2": "open"}
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.ingested_records) == ("stopped", 3)
    spool.close()


def test_it_ends_with_its_parent(tmp_path: Path, follow: Follow) -> None:
    process = follow("--parent-pipe")
    eventually(lambda: running(tmp_path, process), "the writer does not start")
    capture(tmp_path)
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    assert process.wait(20) == 0
    assert outcomes(tmp_path / "capture.db") == {"u1": "ok"}


def test_a_second_one_waits_and_takes_over(tmp_path: Path, follow: Follow) -> None:
    first = follow()
    eventually(lambda: running(tmp_path, first), "the writer does not start")
    second = follow()
    assert second.stderr is not None
    assert f"waiting: another writer (process {first.pid}) is at work" in second.stderr.readline()
    third = follow("--parent-pipe")
    assert third.stderr is not None
    third.stderr.readline()
    assert third.stdin is not None
    third.stdin.close()
    third.stdin = None
    assert third.wait(20) == 0, "waiting ends with the parent too"
    first.kill()
    eventually(lambda: running(tmp_path, second), "the second writer does not take over")


def test_ending_in_trouble_is_a_failure(tmp_path: Path, follow: Follow) -> None:
    (tmp_path / "capture.db").write_bytes(b"no database at all" * 100)
    process = follow()

    def in_trouble() -> bool:
        status = read_status(tmp_path)
        return status is not None and status.state == "error"

    eventually(in_trouble, "no trouble is stated")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "file is not a database" in said
    assert "Traceback" not in said


def archived(directory: Path) -> Path:
    """A configuration that archives, and a database with one exchange."""
    config = directory / "llmtap.yaml"
    prices = "[{model: served, input_usd_per_million: 2, output_usd_per_million: 8}]"
    config.write_text(f"capture: {{dir: {directory}/data}}\nprices: {prices}\n")
    capture(directory / "data")
    assert run("--config", config).exit_code == 0
    return config


def test_the_configuration_reaches_the_writer(tmp_path: Path) -> None:
    archived(tmp_path)
    assert [p.suffix for p in (tmp_path / "data" / "archive").iterdir()] == [".zst"]
    with closing(connect_ro(tmp_path / "data" / "capture.db")) as conn:
        assert conn.execute("SELECT cost_nanousd FROM exchanges").fetchone()[0] == 5 * 2000 + 10 * 8000


def test_a_rebuild(tmp_path: Path) -> None:
    config = archived(tmp_path)
    database = tmp_path / "data" / "capture.db"
    database.write_bytes(b"rubbish" * 999)
    result = run("--config", config, "--rebuild")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"{database}: made again of 1 files, 2 records, 0 bad; the old one is {tmp_path / 'data' / 'capture.old-1.db'}\n"
    )
    assert outcomes(database) == {"u1": "ok"}


def test_a_rebuild_that_would_lose_something_wants_to_be_forced(tmp_path: Path) -> None:
    config = archived(tmp_path)
    for path in (tmp_path / "data" / "archive").iterdir():
        path.unlink()
    spool = sink(tmp_path / "data", boot="b2")
    spool.write_begin(begin("u2"))
    spool.write_end(end("u2"))
    spool.close()
    assert run("--config", config).exit_code == 0
    result = run("--config", config, "--rebuild")
    assert result.exit_code == 1
    assert "up to 1 exchanges in it are no longer in" in result.output
    assert outcomes(tmp_path / "data" / "capture.db").keys() == {"u1", "u2"}
    assert run("--config", config, "--rebuild", "--force").exit_code == 0
    assert outcomes(tmp_path / "data" / "capture.db").keys() == {"u2"}


def test_a_rebuild_beside_a_writer_is_refused(tmp_path: Path) -> None:
    config = archived(tmp_path)
    with WriterLock(tmp_path / "data") as lock:
        assert lock.acquire()
        result = run("--config", config, "--rebuild")
    assert result.exit_code == 1
    assert f"a writer (process {os.getpid()}) is at work" in result.output


@pytest.mark.parametrize("args", [("--rebuild", "--follow"), ("--force",)])
def test_options_that_do_not_go_together(args: tuple[str, ...]) -> None:
    assert run(*args).exit_code == 2
