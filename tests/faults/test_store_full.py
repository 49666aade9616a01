"""A disk that fills up: the writer keeps the spool, says so, and goes on by itself once there is room."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmtap.spool.segment import scan
from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.status import WriterStatus, read_status
from support.records import begin, chat, end, sink
from support.wait import eventually

EXCHANGES = 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.faults
def test_a_real_file_system_that_is_full(small_disk: Path) -> None:
    argv = [sys.executable, "-m", "llmtap_launcher", "ingest", "--follow", "--dir", str(small_disk)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)

    def status() -> WriterStatus:
        found = read_status(small_disk)
        return found if found is not None and found.pid == process.pid else WriterStatus(state="stopped")

    try:
        eventually(lambda: status().state == "running", "the writer does not start")
        process.send_signal(signal.SIGSTOP)
        spool = sink(small_disk, segment_bytes=100_000)
        for n in range(EXCHANGES):
            assert spool.write_begin(begin(f"u{n}", chat(os.urandom(10_000).hex())))
            assert spool.write_end(end(f"u{n}"))
        with (small_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
            while True:
                ballast.write(bytes(4096))
        assert not spool.write_begin(begin("too-much", chat("x" * 200_000))), "the gateway notices too"
        process.send_signal(signal.SIGCONT)
        eventually(lambda: status().trouble == "disk_full", "no trouble is stated")
        (small_disk / "ballast").unlink()
        spool.close()
        eventually(lambda: not scan(small_disk / "spool"), "it does not go on", 60)
        eventually(lambda: status().state == "running" and status().trouble is None, "the trouble is not taken back")
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(60)
    with closing(connect_ro(small_disk / "capture.db")) as conn:
        found = {row[0] for row in conn.execute("SELECT uid FROM exchanges WHERE outcome = 'ok'")}
        assert found == {f"u{n}" for n in range(EXCHANGES)}
        assert [row[0] for row in conn.execute("PRAGMA integrity_check")] == ["ok"]


@pytest.mark.faults
def test_the_writer_outlives_a_full_disk(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "llmtap_launcher", "ingest", "--follow", "--dir", str(tmp_path)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    def status() -> WriterStatus:
        found = read_status(tmp_path)
        return found if found is not None and found.pid == process.pid else WriterStatus(state="stopped")

    try:
        eventually(lambda: status().state == "running", "the writer does not start")
        # a limit on the size of its files is a full disk to it, and can be lifted from outside
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, hard))
        spool = sink(tmp_path, segment_bytes=100_000)
        for n in range(EXCHANGES):
            spool.write_begin(begin(f"u{n}", chat(os.urandom(10_000).hex())))
            spool.write_end(end(f"u{n}"))
        spool.close()
        eventually(lambda: status().state == "error", "no trouble is stated")
        assert "captures wait in the spool" in (status().error or "")
        assert scan(tmp_path / "spool"), "what is not in the database is still there"
        assert process.poll() is None
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        eventually(lambda: not scan(tmp_path / "spool"), "it does not go on", 60)
        eventually(lambda: status().state == "running" and status().error is None, "the trouble is not taken back")
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    with closing(connect_ro(tmp_path / "capture.db")) as conn:
        assert {row[0] for row in conn.execute("SELECT uid FROM exchanges WHERE outcome = 'ok'")} == {
            f"u{n}" for n in range(EXCHANGES)
        }
        assert [row[0] for row in conn.execute("PRAGMA integrity_check")] == ["ok"]
