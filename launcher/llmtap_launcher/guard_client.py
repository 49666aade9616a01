"""The launcher's end of the guard (`guard.py`): starts it, tells it which process groups live, replaces it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from . import guard
from .process import Log, log_to_stderr

GRACE_S = 5.0


class Guard:
    """Covers every group announced with `add` until `remove`, however the launcher ends.

    `add` and `remove` are plain calls that write at once (a pipe takes a line without waiting), so that nothing can come between
    a child's birth and its announcement.
    """

    def __init__(self, run: str, *, grace_s: float = GRACE_S, log: Log = log_to_stderr) -> None:
        """`run`: the mark that the children bear in their environment (`guard.RUN_VARIABLE`)."""
        self._run, self._grace_s, self._log = run, grace_s, log
        self._groups: dict[int, str] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The guard's process id, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and keep it running."""
        await self._spawn()
        self._watching = asyncio.create_task(self._watch(), name="guard")

    def add(self, pgid: int, name: str) -> None:
        """A process group began."""
        self._groups[pgid] = name
        self._tell(f"+{pgid} {name}")

    def remove(self, pgid: int) -> None:
        """A process group is gone."""
        if self._groups.pop(pgid, None) is not None:
            self._tell(f"-{pgid}")

    async def close(self) -> None:
        """Orderly end: end-of-file for the guard, which ends what is still announced, and itself."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None
        process, self._process = self._process, None
        if process is not None:
            self._close_pipe(process)
            await process.wait()

    async def _spawn(self) -> None:
        # by path and isolated: no site packages, nothing of ours imported, no way to break it by a PYTHON* variable
        argv = [sys.executable, "-I", "-S", str(Path(guard.__file__)), self._run, f"{self._grace_s:g}"]
        self._process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        for pgid, name in self._groups.items():
            self._tell(f"+{pgid} {name}")

    async def _watch(self) -> None:
        while self._process is not None:
            await self._process.wait()
            self._close_pipe(self._process)
            self._log("llmtap", "the guard process ended; starting another")
            await self._spawn()

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            # a dead guard is noticed by _watch; the next one is told everything anew
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(line.encode() + b"\n")

    @staticmethod
    def _close_pipe(process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None:
            process.stdin.close()
