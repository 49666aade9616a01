import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher import guard, runtime
from llmtap_launcher.runtime import RunFolder, boot_id, start_time, write_private


def test_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_private(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\ud800")
    assert path.read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_one_launcher_a_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "data") as folder:
        folder.write({"launcher": {"pid": 4711}})
        with pytest.raises(LlmtapError, match=r"llmtap runs already on .*data \(process 4711\)"), RunFolder(tmp_path / "data"):
            pass
        assert folder.state_path.exists()
    assert not folder.state_path.exists()
    with RunFolder(tmp_path / "data"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LlmtapError, match=r"the data folder .*file cannot be written: Not a directory; set capture\.dir"):
        RunFolder(tmp_path / "file").__enter__()


def test_state_that_is_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read() is None
    folder.path.mkdir()
    for text in ("", "[]", '{"launcher": {}}', '{"launcher": {"pid": "x", "start": 1}}', '{"launcher": null}'):
        folder.state_path.write_text(text)
        assert folder.running() is None
    folder.write({"a": 1})
    assert folder.read() == {"a": 1}


def test_a_full_disk_does_not_end_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    folder.write({"a": 1})
    monkeypatch.setattr(runtime, "write_private", full)
    folder.write({"a": 2})
    assert folder.read() == {"a": 1}


def test_running_means_the_very_same_process(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    mine = {"launcher": {"pid": os.getpid(), "start": start_time(os.getpid())}}
    folder.write(mine)
    assert folder.running() == mine
    folder.write({"launcher": {"pid": os.getpid(), "start": 1}})
    assert folder.running() is None


def test_running_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PROC", str(tmp_path / "none"))
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    folder.write({"launcher": {"pid": os.getpid(), "start": None}})
    assert folder.running() is not None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder.write({"launcher": {"pid": gone.pid, "start": None}})
    assert folder.running() is None
    assert start_time(os.getpid()) is None


@pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc")
def test_leftovers_of_a_dead_launcher_are_ended(tmp_path: Path) -> None:
    def sleeper(**env: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import signal; signal.pause()"]
        return subprocess.Popen(command, start_new_session=True, env={**os.environ, **env})

    named, marked, foreign = sleeper(), sleeper(**{guard.RUN_VARIABLE: str(tmp_path)}), sleeper()
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    state = {
        "boot": boot_id(),
        "launcher": {"pid": 1, "start": 0, "run": str(tmp_path)},
        "processes": [
            {"name": "a", "pid": named.pid, "start": start_time(named.pid)},
            {"name": "b", "pid": foreign.pid, "start": 1},  # the id is somebody else's by now
            {"name": "c", "pid": foreign.pid, "start": None},
            {"name": "d", "pid": None, "start": None},
        ],
    }
    try:
        folder.write({**state, "boot": "another"})
        assert folder.clear_leftovers() == 0
        folder.state_path.write_text(json.dumps(state))
        assert folder.clear_leftovers() == 2
        assert named.wait() == marked.wait() == -signal.SIGTERM
        assert foreign.poll() is None
        folder.state_path.unlink()
        assert folder.clear_leftovers() == 0
    finally:
        for process in (named, marked, foreign):
            process.kill()
            process.wait()


def test_a_fresh_folder_is_empty(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        (folder.fresh("w") / "old").mkdir()
        assert list(folder.fresh("w").iterdir()) == []
        (folder.path / "w").rmdir()
        (folder.path / "w").touch()
        with pytest.raises(LlmtapError, match="cannot be made anew"):
            folder.fresh("w")
