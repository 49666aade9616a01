"""Everything that `llmtap up` runs, started in order and stopped in reverse.

    backends ─▶ writer ─▶ gateway ─▶ Datasette        start: each waits for the one before, as far as it matters
    backends ◀─ writer ◀─ gateway ◀─ Datasette        stop: the gateway drains its streams, then the writer takes their records

Only the gateway is essential: when it, or one of its workers, does not start, nothing does. A backend that fails, a writer
that fails, a Datasette that fails are told and shown, and the rest goes on. Engines that take minutes to load are not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .guard_client import Guard
from .process import Log, Process, ProcessFailed, Spec, State, log_to_stderr
from .runtime import RunFolder, boot_id, start_time

#: how long the start goes on waiting for what is quick but not essential (simulated engines, writer, Datasette)
PATIENCE_S = 30.0
#: how long a stop waits for a writer that is being started again
LAST_PASS_S = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    `gateways`: one, or several workers on one port. `slow`: names of backends that are not waited for, `lazy`: of those
    that are not started before somebody asks for them. `facts`: put into the state as they are (URLs, folders).
    """

    gateways: tuple[Spec, ...]
    backends: tuple[Spec, ...] = ()
    writer: Spec | None = None
    datasette: Spec | None = None
    slow: frozenset[str] = frozenset()
    lazy: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Supervisor:
    """Runs a Plan. `start`, then `stop`; `hurry` makes a stop under way a fast one."""

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        run: str,
        *,
        log: Log = log_to_stderr,
        pid: int,
        on_change: Callable[[Process], None] | None = None,
    ) -> None:
        """`run`: this run's mark, which the specs' environments bear; `pid`: the launcher's process id."""
        self.plan, self._folder, self._run, self._log, self._pid = plan, folder, run, log, pid
        self._on_change = on_change
        self.also_told: list[Callable[[Process], None]] = []
        self._started_at = time.time()
        self._phase = "starting"
        self._hurrying = False
        self.guard = Guard(run, log=log)
        self.backends = [self._process(spec) for spec in plan.backends]
        self.writer = self._process(plan.writer) if plan.writer is not None else None
        self.gateways = [self._process(spec) for spec in plan.gateways]
        self.datasette = self._process(plan.datasette) if plan.datasette is not None else None
        self.extra: dict[str, Any] = {}

    @property
    def processes(self) -> list[Process]:
        """All, in the order of their start."""
        some = [*self.backends, self.writer, *self.gateways, self.datasette]
        return [process for process in some if process is not None]

    async def start(self) -> None:
        """Start all. Raises ProcessFailed, with everything stopped again, when the gateway does not get ready."""
        try:
            await self.guard.start()
            for process in self.backends:
                if process.name not in self.plan.lazy:
                    await process.start()
            if self.writer is not None:
                await self.writer.start()
            later = self.plan.slow | self.plan.lazy
            quick = [process for process in self.backends if process.name not in later]
            await self._patiently([*quick, self.writer])
            for gateway in self.gateways:
                await gateway.start()
            for gateway in self.gateways:
                await gateway.ready()
            if self.datasette is not None:
                await self.datasette.start()
                await self._patiently([self.datasette])
            self._phase = "ready"
            self.save()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all, in reverse order; each has its own grace."""
        self._phase = "stopping"
        if self.datasette is not None:
            await self.datasette.stop()
        # at once: each refuses new connections and drains what it has
        await asyncio.gather(*(gateway.stop() for gateway in self.gateways))
        if self.writer is not None:
            await self._last_pass(self.writer)
            await self.writer.stop()
        await asyncio.gather(*(process.stop() for process in self.backends))
        await self.guard.close()

    def add(self, spec: Spec) -> Process:
        """One more backend, not yet started."""
        process = self._process(spec)
        self.backends.append(process)
        return process

    async def discard(self, process: Process) -> None:
        """Stop a backend's process and forget it."""
        await process.stop()
        if process in self.backends:
            self.backends.remove(process)
        self.save()

    async def _last_pass(self, writer: Process) -> None:
        """A writer that died a moment ago is waited for, so that it takes what is in the spool before the end. What stays there
        all the same, the next start takes."""
        if writer.state is State.STARTING and not self._hurrying:
            with contextlib.suppress(ProcessFailed, TimeoutError):
                await asyncio.wait_for(writer.ready(), LAST_PASS_S)

    def hurry(self) -> None:
        """Kill what is left, without grace: whoever awaits `stop` gets there at once."""
        self._hurrying = True
        for process in self.processes:
            process.kill()

    async def hurried(self) -> None:
        """Keep killing until cancelled, for what starts or is only reached later in the order of the stop."""
        while True:
            self.hurry()
            await asyncio.sleep(0.05)

    def failures(self) -> list[str]:
        """One line for each process that failed for good."""
        return [process.error or f"{process.name} failed" for process in self.processes if process.state is State.FAILED]

    def state(self) -> dict[str, Any]:
        """What `state.json` holds."""
        return {
            "version": 1,
            "phase": self._phase,
            "started_at": self._started_at,
            "boot": boot_id(),
            "launcher": {"pid": self._pid, "start": start_time(self._pid), "run": self._run},
            **self.plan.facts,
            **self.extra,
            "processes": [
                {
                    "name": process.name,
                    "state": str(process.state),
                    "pid": process.pid,
                    "start": start_time(process.pid) if process.pid is not None else None,
                    "restarts": process.restarts,
                    "error": process.error,
                }
                for process in self.processes
            ],
        }

    def save(self) -> None:
        """Write the state now."""
        self._folder.write(self.state())

    async def _patiently(self, processes: Iterable[Process | None]) -> None:
        waiting = [asyncio.create_task(process.tried()) for process in processes if process is not None]
        if waiting:
            _, pending = await asyncio.wait(waiting, timeout=PATIENCE_S)
            for task in pending:
                task.cancel()

    def _process(self, spec: Spec) -> Process:
        return Process(spec, log=self._log, on_start=self._born, on_end=self.guard.remove, on_change=self._changed)

    def _born(self, pgid: int, name: str) -> None:
        self.guard.add(pgid, name)
        self.save()

    def _changed(self, process: Process) -> None:
        self.save()
        for tell in self.also_told:
            tell(process)
        if self._on_change is not None:
            self._on_change(process)


__all__ = ["Plan", "ProcessFailed", "Supervisor"]
