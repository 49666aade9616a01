"""One child process in a process group of its own: its output by lines, its end as a future, signals to the whole group.

The lowest layer of the launcher: no states, no restarts (see `process.py`). A child ends when its own process does, not when
the last of its descendants closes the output: asyncio's ready-made `Process.wait()` may wait for that.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from . import guard

STDOUT = 1
#: a longer line is cut into pieces, so that a child which never writes a line feed takes no memory
MAX_LINE = 64 * 1024
#: how long descendants may live on after their leader before they are killed
STRAGGLERS_S = 2.0
#: how long to read on after the end of everything in the group
LAST_WORDS_S = 1.0
#: a process that SIGKILL does not end within this time hangs in the kernel (a driver, a dead file server)
UNKILLABLE_S = 10.0


class Child(asyncio.SubprocessProtocol):
    """A started process. `exited` is done when it ended; `status` is then its exit status, negative for a signal."""

    def __init__(
        self,
        on_line: Callable[[str], None],
        on_start: Callable[[int], None] | None = None,
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._read_out: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid = 0
        self._on_line, self._on_start, self._on_end = on_line, on_start, on_end
        self._transport: asyncio.SubprocessTransport | None = None
        self._rest: dict[int, bytes] = {}

    @property
    def status(self) -> int | None:
        """Exit status, -N when signal N ended it, None while it runs."""
        return self._transport.get_returncode() if self._transport is not None else None

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Started: tell the guard before anything else can happen."""
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid()
        if self._on_start is not None:
            self._on_start(self.pid)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Output: hand on whole lines, keep the rest."""
        data = self._rest.pop(fd, b"") + data
        *lines, rest = data.split(b"\n")
        while len(rest) > MAX_LINE:
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        if rest:
            self._rest[fd] = rest
        for line in lines:
            self._emit(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Output closed: a last line without line feed is a line."""
        rest = self._rest.pop(fd, b"")
        if rest:
            self._emit(rest)
        if fd == STDOUT and not self._read_out.done():
            self._read_out.set_result(None)

    def process_exited(self) -> None:
        """The process itself ended; descendants may live on."""
        if not self.exited.done():
            self.exited.set_result(None)

    def _emit(self, line: bytes) -> None:
        self._on_line(line.decode("utf-8", "replace").rstrip("\r"))

    # what the launcher does with it

    def signal(self, number: int) -> None:
        """Signal the whole group, if there still is one."""
        if self.pid and (not self.exited.done() or guard.group_alive(self.pid)):
            guard.signal_group(self.pid, number)

    async def end(self, grace_s: float) -> bool:
        """SIGTERM, up to `grace_s` seconds, SIGKILL; then whatever the leader left behind. False: the leader needed SIGKILL."""
        gently = True
        if not self.pid:
            return gently  # it never ran
        if not self.exited.done():
            self.signal(signal.SIGTERM)
            if not await self._gone(grace_s):
                gently = False
                self.signal(signal.SIGKILL)
                await self._gone(UNKILLABLE_S)
        await self.clear(STRAGGLERS_S if gently else 0.0)
        return gently

    async def clear(self, grace_s: float = STRAGGLERS_S) -> None:
        """After the leader's end: give its descendants `grace_s` seconds to follow, kill the rest, close the pipes."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        killed = False
        while guard.group_alive(self.pid):
            if loop.time() >= deadline:
                if killed:
                    break
                killed, deadline = True, loop.time() + UNKILLABLE_S
                self.signal(signal.SIGKILL)
            await asyncio.sleep(guard.POLL_S)
        if self._transport is not None:
            # the last words may still be in the pipe; a descendant outside the group may hold it open for ever
            await asyncio.wait([self._read_out], timeout=LAST_WORDS_S)
            self._transport.close()
        if self._on_end is not None:
            self._on_end(self.pid)

    async def _gone(self, timeout_s: float) -> bool:
        await asyncio.wait([self.exited], timeout=timeout_s)
        return self.exited.done()


async def spawn(child: Child, argv: Sequence[str], *, env: Mapping[str, str], stdin_pipe: bool = False) -> None:
    """Start `argv` as `child` in a session of its own, stdout and stderr joined. Raises OSError (not found, not executable, ...).

    `stdin_pipe`: its stdin is a pipe that stays open as long as the launcher lives; else /dev/null.
    """
    none, pipe, joined = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    await asyncio.get_running_loop().subprocess_exec(
        lambda: child,
        *argv,
        stdin=pipe if stdin_pipe else none,
        stdout=pipe,
        stderr=joined,
        env=dict(env),
        start_new_session=True,
    )
