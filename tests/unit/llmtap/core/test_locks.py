"""Whether somebody holds a file's lock."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from llmtap.core.locks import held

HOLDER = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_while_it_is_open_and_looking_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch(mode=0o400)
    assert not held(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert not held(path)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the look before has let go
        assert held(path)
        assert held(path)
    finally:
        os.close(fd)
    assert not held(path)


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert held(path)
        process.kill()
        process.wait(30)
        assert not held(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert not held(tmp_path / "none")
    assert not held(tmp_path / "no" / "folder")
    assert not (tmp_path / "none").exists()
