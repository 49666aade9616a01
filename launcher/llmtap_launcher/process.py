"""A child process as a state machine whose callers never look before they ask.

    stopped ──start──▶ starting ──probe says yes──▶ ready
       ▲                  ▲  │                        │ exit: wait (1, 2, 4 … 30 s), start again
       │                  └──┼────────────────────────┘
    stopping ◀──stop─────────┤ too many exits, no such command, port taken
                             ▼
                           failed

`start`, `ready` and `stop` may be called in any state, any number of times, by several callers at once. Output goes line by
line to `log(name, line)`; the last 200 lines are kept and told on failure. What a process is (which command, when it counts as
ready) is a `Spec`; when it is started again is `restart.py`; the operating system's side is `spawn.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from llmtap.core.errors import LlmtapError

from .restart import History, RestartPolicy, after_exit
from .spawn import Child, spawn

KEPT_LINES = 200
SHOWN_LINES = 20


class State(StrEnum):
    """Where a process is; only these five."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class ProcessFailed(LlmtapError):
    """A process that will not run. `str()` is one line; `tail` its last output lines."""

    def __init__(self, message: str, tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tail = list(tail)


@dataclass(frozen=True, slots=True)
class Started:
    """What a readiness probe may look at: process id, when it was started (`time.time()`), its output lines so far."""

    pid: int
    at: float
    lines: Sequence[str]


#: asks once whether the process is ready; exceptions of I/O count as no
Probe = Callable[[Started], Awaitable[bool]]
Log = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run. `env`: the whole environment (None: the launcher's own). `listens`: must be free before the start.

    `broken`: why it cannot run, where that is known before. `ready` None: ready as soon as it runs. `port_hint` ends the
    message about a taken port, `missing_hint` the one about a missing command.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    ready: Probe | None = None
    startup_timeout_s: float = 60.0
    grace_s: float = 10.0
    probe_interval_s: float = 0.1
    listens: tuple[str, int] | None = None
    stdin_pipe: bool = False
    broken: str | None = None
    port_hint: str = "choose another"
    missing_hint: str = "install it, or give its full path"
    policy: RestartPolicy = field(default_factory=RestartPolicy)


def log_to_stderr(name: str, line: str) -> None:
    """The default log: `name | line` on the launcher's stderr."""
    with contextlib.suppress(OSError, ValueError):  # a closed terminal is no reason to stop serving
        print(f"{name} | {line}", file=sys.stderr, flush=True)


def port_taken(host: str, port: int) -> bool:
    """Whether somebody listens on `host:port` already (asked by binding it, as the process itself will)."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False  # no such host: the process will say so itself
    for family, kind, proto, _, address in addresses:
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return True
    return False


def _ending(status: int | None) -> str:
    if status is None:
        return "vanished"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
    return f"exited with status {status}"


class _Hopeless(Exception):
    """Starting again would not help; the message says why."""


class Process:
    """One process of the launcher. Make, start, stop within one running event loop."""

    def __init__(
        self,
        spec: Spec,
        *,
        log: Log = log_to_stderr,
        on_start: Callable[[int, str], None] | None = None,
        on_end: Callable[[int], None] | None = None,
        on_change: Callable[[Process], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`on_start(pgid, name)` and `on_end(pgid)` bracket every process group (for the guard); `on_change` follows states."""
        self.spec = spec
        self.state = State.STOPPED
        self.error: str | None = None
        self.restarts = 0
        self.tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._fresh: deque[str] = deque(maxlen=KEPT_LINES)  # of the current start only: an old "ready" says nothing
        self._log, self._on_start, self._on_end, self._on_change = log, on_start, on_end, on_change
        self._clock, self._sleep = clock, sleep
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._ready_since: float | None = None

    @property
    def name(self) -> str:
        """The spec's name, which labels every line of output."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """Process id, also of its group, while it runs."""
        child = self._child
        return child.pid if child is not None and not child.exited.done() else None

    async def start(self) -> None:
        """Have it run: begins a start unless one is under way or done. Returns at once; `ready` waits for the outcome."""
        while self.state is State.STOPPING:
            await self._change()
        if self.state in (State.STARTING, State.READY):
            return
        self.error, self.restarts = None, 0
        self._set(State.STARTING)
        self._task = asyncio.create_task(self._run(), name=f"process {self.name}")

    async def ready(self) -> None:
        """Have it ready: starts it if needed, waits. Raises ProcessFailed when it failed or was stopped meanwhile."""
        await self.start()
        while self.state is State.STARTING:
            await self._change()
        if self.state is not State.READY:
            raise ProcessFailed(self.error or f"{self.name} was stopped before it was ready", self.tail)

    async def settled(self) -> State:
        """Wait until it is neither starting nor stopping."""
        while self.state in (State.STARTING, State.STOPPING):
            await self._change()
        return self.state

    async def tried(self) -> State:
        """Wait until its first attempt is over: ready, failed, stopped, or about to be started again."""
        while self.state is State.STOPPING or (self.state is State.STARTING and self.error is None):
            await self._change()
        return self.state

    async def stop(self, grace_s: float | None = None) -> None:
        """Have it stopped, and wait: SIGTERM to the group, `grace_s` seconds (default: the spec's), SIGKILL to the group."""
        if self.state is State.STOPPED:
            return
        if self.state is State.STOPPING:
            await self.settled()
            return
        self._set(State.STOPPING)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        try:
            await self._end_child(self.spec.grace_s if grace_s is None else grace_s)
        finally:
            self._set(State.STOPPED)

    def kill(self) -> None:
        """SIGKILL the group now; whoever awaits `stop` then gets there at once."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    # the life of it

    async def _run(self) -> None:
        """Start, watch, start again, until stopped (cancelled) or there is no point."""
        history = History()
        try:
            while True:
                why = await self._attempt(first=self.restarts == 0)
                await self._end_child(self.spec.grace_s)
                decision = after_exit(self.spec.policy, history, self._clock(), self._ready_since)
                history, self._ready_since = decision.history, None
                if decision.delay_s is None:
                    raise _Hopeless(f"{self.name} {why}; it {decision.reason} and is not started again")
                self.error = f"{why}; starting again in {decision.delay_s:g} s"
                self._set(State.STARTING)
                self._log(self.name, f"[llmtap] {self.error}")
                await self._sleep(decision.delay_s)
                self.restarts += 1
        except _Hopeless as hopeless:
            self._fail(str(hopeless))
        except Exception as error:  # a defect of ours must not look like a process that is starting for ever
            await self._end_child(self.spec.grace_s)
            self._fail(f"{self.name}: {type(error).__name__}: {error}")

    def _fail(self, message: str) -> None:
        self.error = message
        lines = list(self.tail)[-SHOWN_LINES:]
        self._log(self.name, f"[llmtap] {message}" + ("; its last lines:" if lines else ""))
        for line in lines:
            self._log(self.name, f"  {line}")
        self._set(State.FAILED)

    async def _attempt(self, first: bool) -> str:
        """One life of the process; returns how it ended. Raises _Hopeless where another attempt would end the same way."""
        spec = self.spec
        if spec.broken is not None:
            raise _Hopeless(f"{spec.name}: {spec.broken}")
        env = dict(os.environ if spec.env is None else spec.env)
        if spec.listens is not None and port_taken(*spec.listens):
            if first:
                raise _Hopeless(f"{spec.name}: port {spec.listens[1]} is in use; {spec.port_hint}")
            return f"found port {spec.listens[1]} in use"
        if shutil.which(spec.argv[0], path=env.get("PATH", os.defpath)) is None:
            raise _Hopeless(f"{spec.name}: command not found: {spec.argv[0]}; {spec.missing_hint}")
        at = time.time()
        self._fresh.clear()
        # known before it runs, so that a stop in this very moment finds it
        child = self._child = Child(self._line, self._born, self._on_end)
        try:
            await spawn(child, spec.argv, env=env, stdin_pipe=spec.stdin_pipe)
        except OSError as error:
            raise _Hopeless(f"{spec.name}: cannot run {spec.argv[0]}: {error.strerror or error}") from None
        timely = await self._watch_start(child, Started(child.pid, at, self._fresh))
        if not child.exited.done():
            if not timely:
                return f"was not ready within {spec.startup_timeout_s:g} s"
            self._ready_since = self._clock()
            self.error = None
            self._set(State.READY)
            await asyncio.wait([child.exited])
        return _ending(child.status)

    async def _watch_start(self, child: Child, started: Started) -> bool:
        """Ask the probe until it says yes (True), the process ends, or the time is over (False)."""
        if self.spec.ready is None:
            return True
        probing = asyncio.create_task(self._probe(self.spec.ready, started))
        try:
            await asyncio.wait([probing, child.exited], timeout=self.spec.startup_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if probing.done():
                probing.result()
                return True
            return False
        finally:
            probing.cancel()
            await asyncio.wait([probing])

    async def _probe(self, probe: Probe, started: Started) -> None:
        while True:
            try:
                if await probe(started):
                    return
            except OSError:
                pass  # not listening yet, no file yet
            await asyncio.sleep(self.spec.probe_interval_s)

    async def _end_child(self, grace_s: float) -> None:
        """End what runs, if something does: the process or, after its exit, what it left behind in its group."""
        child = self._child
        if child is None:
            return
        if not await child.end(grace_s):
            self._log(self.name, f"[llmtap] did not end within {grace_s:g} s of SIGTERM and was killed")
        if self._child is child:
            self._child = None

    def _born(self, pid: int) -> None:
        if self._on_start is not None:
            self._on_start(pid, self.name)

    def _line(self, line: str) -> None:
        self.tail.append(line)
        self._fresh.append(line)
        self._log(self.name, line)

    def _set(self, state: State) -> None:
        self.state = state
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._on_change is not None:
            self._on_change(self)

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter
