"""The launcher's own folder, `<capture.dir>/run`: who runs on this data, what it started, and what an earlier run left behind.

`lock` is held (flock) as long as a launcher lives, so a data folder has one. `state.json` tells `llmtap status` and the next
start what there is; it names process groups with the start times of their leaders, because process ids are reused.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtap.core.errors import LlmtapError
from llmtap.core.sockets import CONTROL, MANAGEMENT

from . import guard

#: sun_path of Linux and macOS, less the final zero byte
MAX_SOCKET_PATH = 103


def write_private(path: Path, text: str) -> None:
    """Replace `path` at once by a file only its owner can read. A reader sees the old text or the new, never a part."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def start_time(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None when it is gone or cannot be asked."""
    found = guard.stat(pid)
    return found.start if found is not None else None


def boot_id() -> str:
    """Differs from one boot of the machine to the next; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


class RunFolder:
    """The folder of one launcher. A context manager: entering takes the lock, leaving gives it back and removes the state."""

    def __init__(self, capture_dir: Path) -> None:
        self.path = capture_dir / "run"
        self._lock: int | None = None
        self._sockets: Path | None = None

    @property
    def state_path(self) -> Path:
        """`state.json`."""
        return self.path / "state.json"

    @property
    def sockets(self) -> Path:
        """Where UNIX sockets of this run go: here, or where this folder's path is too long for one, in one of its own."""
        if len(os.fsencode(self.path.absolute())) + 1 + len(MANAGEMENT) <= MAX_SOCKET_PATH:
            return self.path.absolute()
        if self._sockets is None:
            self._sockets = Path(tempfile.mkdtemp(prefix="llmtap-"))  # with mode 0700
        return self._sockets

    def __enter__(self) -> RunFolder:
        """Raises LlmtapError when the folder cannot be written or a launcher runs on it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LlmtapError(
                f"the data folder {self.path.parent} cannot be written: {error.strerror}; set capture.dir"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            state = self.read() or {}
            pid = state.get("launcher", {}).get("pid", "?")
            raise LlmtapError(
                f"llmtap runs already on {self.path.parent} (process {pid}); stop it, or set another capture.dir"
            ) from None
        self._lock = lock
        return self

    def __exit__(self, *exc: object) -> None:
        self.state_path.unlink(missing_ok=True)
        for name in (MANAGEMENT, CONTROL):
            (self.path / name).unlink(missing_ok=True)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> dict[str, Any] | None:
        """The state as last written, None when there is none."""
        try:
            state = json.loads(self.state_path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the state. A full disk must not end the launcher: the old state stays then."""
        try:
            write_private(self.state_path, json.dumps(state, indent=1) + "\n")
        except OSError:
            return

    def fresh(self, name: str) -> Path:
        """An empty folder of this run; what an earlier one left in it is gone. The lock must be held. Raises LlmtapError."""
        path = self.path / name
        try:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(mode=0o700)
        except OSError as error:
            raise LlmtapError(f"the folder {path} cannot be made anew: {error.strerror}; remove it") from None
        return path

    def running(self) -> dict[str, Any] | None:
        """The state, if the launcher that wrote it is alive."""
        state = self.read()
        if state is None:
            return None
        try:
            pid, start = int(state["launcher"]["pid"]), state["launcher"]["start"]
        except (KeyError, TypeError, ValueError):
            return None
        if not guard.have_proc():
            return state if _exists(pid) else None
        return state if start_time(pid) == start else None

    def clear_leftovers(self, grace_s: float = 5.0) -> int:
        """End what a dead launcher (we hold its lock) left running; returns how many. Blocks up to twice `grace_s`."""
        state = self.read()
        if state is None or state.get("boot") != boot_id():
            return 0
        groups: dict[int, int | None] = {}
        for process in state.get("processes", []):
            pid, start = process.get("pid"), process.get("start")
            # without a start time it could be anybody's: only the mark in its environment may tell
            if isinstance(pid, int) and isinstance(start, int):
                groups[pid] = start
        return guard.end_all(groups, str(state.get("launcher", {}).get("run", "")), grace_s)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
