"""The backends of a running launcher: which there are, which of them run, and what the gateways are told of that.

A change of the set of backends is written to the file the gateways read, and they are told to read it; one that they refuse is
taken back. What a file cannot say (stopped, may be started, draining) they are told as a picture (`members`, `llmtap.remote`).

    on demand      launch.ttl_s: idle that long → no more requests, the running ones end → stopped (or put to sleep)
                   a request for it waits in the gateway, which says "wanted" → started (or woken) → the gateway lets it go
    groups         of one group one runs: the wanted one waits for the others' requests to end, and for them to be stopped

How the set of backends changes is in `fleet`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from llmtap.core.config import Backend, Config
from llmtap.core.errors import ConfigError, LlmtapError

from .gateway_link import GatewayLink, Refused
from .members import RETRY_S, Member
from .plan import EFFECTIVE, Setup, backend_facts, write_effective
from .process import Log, Process, ProcessFailed, State
from .supervisor import Supervisor
from .vllm import sleep_call

POLL_S = 0.1
#: how long a gateway may take to see a backend that has become ready
SEEN_S = 15.0


class Unknown(LlmtapError):
    """There is no such backend, or none for that model."""


class Conflict(LlmtapError):
    """It cannot be done in the state things are in."""


class Roster:
    """Owns the members. `start` when the supervisor has its processes, `close` before it stops them."""

    def __init__(
        self,
        setup: Setup,
        supervisor: Supervisor,
        link: GatewayLink,
        *,
        run: str,
        env: Mapping[str, str],
        folder: Path,
        log: Log,
    ) -> None:
        self.setup, self.config = setup, setup.config
        self._supervisor, self._link = supervisor, link
        self._run, self._env, self._folder, self._log = run, env, folder, log
        processes = {process.name: process for process in supervisor.backends}
        self.members: dict[str, Member] = {}
        for backend in self.config.backends:
            member = Member(backend, processes.get(backend.name))
            member.resumes = backend.launch is not None and backend.launch.on_demand
            self.members[backend.name] = member
        self._locks: dict[str, asyncio.Lock] = {}
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._bringing: set[str] = set()
        self._dirty = asyncio.Event()
        self._closed = False
        link.on_wanted = self._wanted
        supervisor.also_told.append(self._process_changed)

    # ---- its life

    async def start(self) -> None:
        """Keep the gateways told from now on. What they see first is there before they are."""
        await self._show()
        for work in (self._tell(), self._watch_idle()):
            self._spawn(work)

    async def close(self) -> None:
        """Nothing is started or stopped by it any more."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what the gateways are told

    @property
    def patience_s(self) -> float:
        """How long running requests may take to end before their backend is stopped all the same."""
        return self.config.server.drain_timeout_s

    async def _show(self) -> None:
        now = asyncio.get_running_loop().time()
        patience = self.patience_s
        await self._link.show({name: member.shown(patience, now) for name, member in self.members.items() if member.entered})

    async def _tell(self) -> None:
        """Show what has changed, however often it does."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._show()
            except Refused as error:
                self._log("llmtap", f"the gateway: {error}")

    def _process_changed(self, process: Process) -> None:
        member = self.members.get(process.name)
        if member is None or member.process is not process:
            return
        if process.state is State.READY:
            member.used_at = asyncio.get_running_loop().time()
            member.failed_at = None
        elif member.asleep:  # it died in its sleep: what would start again now would be awake
            member.asleep = False
            if process.state is State.STARTING:
                self._spawn(process.stop())
        if process.state is State.FAILED and member.resumes:
            loop = asyncio.get_running_loop()
            member.failed_at = loop.time()
            loop.call_later(RETRY_S, self._dirty.set)
        self._dirty.set()

    async def _enter(self, backends: Iterable[Backend], config: Config | None = None) -> None:
        """Have the gateways serve these backends (and `config`). Raises ConfigError, and then nothing has changed."""
        before = self.config
        after = (config or before).model_copy(update={"backends": tuple(backends)})
        path = self._folder / EFFECTIVE
        await asyncio.to_thread(write_effective, after, path)
        try:
            await self._link.ask("reload")
        except Refused as error:
            await asyncio.to_thread(write_effective, before, path)
            with contextlib.suppress(Refused):
                await self._link.ask("reload")
            raise ConfigError(str(error)) from None
        self.config = after
        self.setup = Setup(after, self.setup.web_port)
        self._supervisor.extra["backends"] = backend_facts(after)
        self._supervisor.save()

    # ---- asked for by name or model

    def member(self, name: str) -> Member:
        """Raises Unknown."""
        found = self.members.get(name)
        if found is None:
            raise Unknown(f"there is no backend {name}")
        return found

    def launched(self, model: str) -> list[Member]:
        """Those that the launcher can start for a model. Raises Unknown."""
        found = [m for m in self.members.values() if m.process is not None and m.serves(model)]
        if not found:
            raise Unknown(f"no backend of ours serves {model}; start one with /api/v1/inference/up")
        return found

    async def seen(self, member: Member) -> bool:
        """Wait until every gateway has found a backend healthy. False when that takes too long."""
        try:
            async with asyncio.timeout(SEEN_S):
                while True:
                    rows = [
                        row for stats in await self._link.ask("stats") for row in stats["backends"] if row["name"] == member.name
                    ]
                    if rows and all(row["state"] == "up" for row in rows):
                        return True
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return False

    async def _idle(self, member: Member, patience_s: float | None = None) -> bool:
        """Wait until no request runs there, for the time that a drain may take. False when some still do."""
        patience = self.patience_s if patience_s is None else patience_s
        try:
            async with asyncio.timeout(patience):
                while (await self._load()).get(member.name, (0.0, 0.0))[0]:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            self._log(member.name, f"[llmtap] requests were still running after {patience:g} s")
            return False
        return True

    async def _load(self) -> dict[str, tuple[float, float]]:
        """Over all gateways: requests under way at each backend, and when it last answered."""
        total: dict[str, tuple[float, float]] = {}
        for load in await self._link.ask("load"):
            for name, (count, last_ok) in load.items():
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + count, max(before[1], last_ok))
        return total

    # ---- running and resting

    def _lock(self, member: Member) -> asyncio.Lock:
        key = f"group {member.group}" if member.group is not None else f"backend {member.name}"
        return self._locks.setdefault(key, asyncio.Lock())

    async def bring(self, member: Member, *, on_demand: bool = False) -> None:
        """Have it run and get requests. `on_demand`: for a request, so not if it is stopped by hand meanwhile.

        Raises Conflict, ProcessFailed.
        """
        if member.process is None:
            raise Conflict(f"{member.name} is not started by llmtap")
        async with self._lock(member):
            if on_demand and not member.resumes:
                return
            await self._make_room(member)
            member.resumes = member.backend.launch is not None and member.backend.launch.on_demand
            member.failed_at = None
            if member.asleep:
                member.asleep = not await sleep_call(member.backend, "/wake_up")
                if member.asleep:  # it does not wake: a new one does
                    await member.process.stop()
                    member.asleep = False
            try:
                await self._ready(member, member.process)
            finally:
                member.held = member.anew = False
                member.used_at = asyncio.get_running_loop().time()
                await self._show()

    async def _ready(self, member: Member, process: Process) -> None:
        """Have its process ready, unless the member is gone by now: nobody would ever stop it. Raises ProcessFailed."""
        if self._closed:
            raise Conflict("llmtap is stopping")
        if self.members.get(member.name) is not member or member.process is not process:
            raise ProcessFailed(process.error or f"{member.name} was stopped before it was ready", process.tail)
        await process.ready()

    async def rest(self, member: Member, *, resumes: bool, patience_s: float | None = None) -> None:
        """Have it stop, its running requests first brought to their end. `resumes`: the next request may start it again."""
        if member.process is not None:
            if member.process.state is State.STARTING:  # whoever waits for it has the lock
                await member.process.stop()
            async with self._lock(member):
                await self._rest(member, resumes=resumes, patience_s=patience_s)

    async def _rest(self, member: Member, *, resumes: bool, patience_s: float | None = None) -> None:
        process = member.process
        if process is None:
            return
        member.held, member.resumes = True, resumes
        await self._show()
        if process.state is State.READY and not member.asleep:
            await self._idle(member, patience_s)
            if resumes and await sleep_call(member.backend, "/sleep"):
                member.asleep = True
                self._log(member.name, "[llmtap] sleeps")
                return
        elif member.asleep and resumes:
            return
        await process.stop()

    async def _make_room(self, member: Member) -> None:
        """Stop the others of its group. With the group's lock held."""
        if member.group is None:
            return
        for other in list(self.members.values()):
            if other is not member and other.group == member.group and other.runs:
                self._log(other.name, f"[llmtap] makes room for {member.name}")
                await self._rest(other, resumes=other.resumes or not other.held)

    def _wanted(self, name: str) -> None:
        member = self.members.get(name)
        if member is None or member.process is None or not member.resumes or name in self._bringing or self._closed:
            return
        self._bringing.add(name)
        self._log(name, "[llmtap] a request needs it")
        self._spawn(self._bring_alone(member, on_demand=True))

    async def _bring_alone(self, member: Member, *, on_demand: bool) -> None:
        """`bring` with nobody to raise to."""
        try:
            await self.bring(member, on_demand=on_demand)
        except (ProcessFailed, Conflict):
            pass  # told by the process; the gateways have it from the picture
        except Refused as error:
            self._log(member.name, f"[llmtap] the gateway: {error}")
        finally:
            self._bringing.discard(member.name)
            self._dirty.set()  # who asked in this very moment asks again

    async def _watch_idle(self) -> None:
        """Stop what nobody has used for its `ttl_s`."""
        loop = asyncio.get_running_loop()
        while True:
            idle = [m for m in self.members.values() if m.ttl_s is not None and m.runs and not m.held and m.entered]
            shortest = min((m.ttl_s for m in idle if m.ttl_s is not None), default=4.0)
            await asyncio.sleep(min(1.0, shortest / 4))
            if not self._link.gateways:  # nobody could have used them
                for member in idle:
                    member.used_at = loop.time()
            if not idle or not self._link.gateways:
                continue
            try:
                load = await self._load()
            except Refused:
                continue
            now = loop.time()
            for member in idle:
                count, last_ok = load.get(member.name, (0.0, 0.0))
                if count or last_ok != member.last_ok or member.process is None or member.process.state is not State.READY:
                    member.used_at, member.last_ok = now, last_ok
                elif member.ttl_s is not None and now - member.used_at >= member.ttl_s and not self._lock(member).locked():
                    self._log(member.name, f"[llmtap] unused for {member.ttl_s:g} s")
                    self._spawn(self.rest(member, resumes=True))
