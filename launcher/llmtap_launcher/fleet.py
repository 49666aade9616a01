"""How the backends of a running launcher change: by the management API, and by a configuration that is read again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from urllib.parse import urlsplit

from llmtap.core.config import Backend, Config
from llmtap.core.errors import ConfigError

from .members import Member
from .plan import backend_spec, lazy
from .ports import free_ports
from .process import ProcessFailed, Spec, State
from .reconfigure import taken_over
from .roster import Conflict, Roster, Unknown
from .settle import settled

__all__ = ["Conflict", "Fleet", "Unknown"]


class Fleet(Roster):
    """Backends come and go."""

    async def add(self, backend: Backend, *, progress: Callable[[Member], None] = lambda member: None) -> Member:
        """One more backend, at the gateways when it can be used: one with `launch` is started first.

        Raises Conflict, ConfigError, ProcessFailed; then there is no such backend.
        """
        async with self._changing:
            if self._closed:
                raise Conflict("llmtap is stopping")
            if backend.name in self.members:
                raise Conflict(f"there is a backend {backend.name} already")
            member = Member(backend, origin="api", entered=False)
            self.members[backend.name] = member
            try:
                if backend.launch is not None:
                    member.process = self._supervisor.add(self._spec(backend, api=True))
            except BaseException:
                del self.members[backend.name]
                raise
        progress(member)
        try:
            if member.process is not None:
                async with self._lock(member):
                    await self._make_room(member)
                    await self._ready(member, member.process)
            async with self._changing:
                if self.members.get(backend.name) is not member:
                    raise ProcessFailed(f"{backend.name} was stopped before it was ready")
                member.resumes = backend.launch is not None and backend.launch.on_demand
                others = [b for b in self.config.backends if b.name != backend.name]  # the file may have come to name it
                await self._enter([*others, backend])
                member.entered = True
                await self._show()
        except BaseException:
            await asyncio.shield(self._forget(member))
            raise
        return member

    async def change(self, name: str, backend: Backend) -> Member:
        """Other settings for a backend whose process stays. Raises Unknown, Conflict, ConfigError."""
        async with self._changing:
            member = self.member(name)
            if not member.entered:
                raise Conflict(f"{name} is being started")
            await self._enter(backend if b.name == name else b for b in self.config.backends)
            member.backend = backend
            await self._show()
        return member

    async def set_draining(self, name: str, on: bool) -> Member:
        """No further requests for it, or again. Raises Unknown."""
        member = self.member(name)
        member.draining = on
        await self._show()
        return member

    async def remove(self, name: str, patience_s: float | None = None) -> None:
        """No further requests, the running ones end (up to `patience_s`), its process ends, it is gone. Raises Unknown."""
        member = self.member(name)
        member.draining = True
        if member.entered:
            await self._show()
            await self._idle(member, patience_s)
        await self._forget(member)

    async def _forget(self, member: Member) -> None:
        """Its process ends, the gateways do not know it any more."""
        if self.members.get(member.name) is member:
            del self.members[member.name]
        if member.process is not None:
            await self._supervisor.discard(member.process)
        async with self._changing:
            if any(b is member.backend for b in self.config.backends):
                with contextlib.suppress(ConfigError):
                    await self._enter(b for b in self.config.backends if b is not member.backend)

    async def reload(self, fresh: Config) -> None:
        """Go over to another configuration: backends come and go, processes follow. Those the API made stay, unless the
        configuration names one like them. Raises ConfigError, and then nothing has changed."""
        named = {backend.name for backend in fresh.backends}
        kept = [m.backend for m in self.members.values() if m.origin == "api" and m.entered and m.name not in named]
        backends = [self._as_before(backend) for backend in fresh.backends]
        async with self._changing:
            await self._enter([*backends, *kept], taken_over(self.config, fresh))
            gone = [m for m in self.members.values() if m.entered and m.name not in named and m.origin == "file"]
            for member in gone:
                del self.members[member.name]
                self._spawn(self._retire(member))
            begin = [new for backend in backends if (new := self._renewed(backend)) is not None]
            order = [backend.name for backend in [*backends, *kept]]
            known = self.members
            self.members = {name: known[name] for name in [*order, *(n for n in known if n not in order)]}
            await self._show()
        waiting = set(lazy([(m.backend, m.backend.launch) for m in self.members.values() if m.backend.launch is not None]))
        for member in begin:
            if member.process is not None and member.name not in waiting:
                self._log(member.name, "[llmtap] it is new")
                self._spawn(self._bring_alone(member, on_demand=False))

    def _as_before(self, backend: Backend) -> Backend:
        """A backend of the file, settled: on the port it has already, if the file leaves that open."""
        known = self.members.get(backend.name)
        here = known.backend.url if known is not None and known.process is not None else None
        return settled(backend.model_copy(update={"url": here}) if backend.url is None and here else backend, self.free_port)

    def free_port(self) -> int:
        """One that nobody listens on, nor will: those of backends that are stopped or about to start are theirs."""
        taken = {port for m in self.members.values() if m.backend.url and (port := urlsplit(m.backend.url).port) is not None}
        return free_ports(1, avoid=taken)[0]

    def _renewed(self, backend: Backend) -> Member | None:
        """Note what the file says of a backend now. The member, if its process has to be started."""
        member = self.members.get(backend.name)
        if member is not None and member.backend.launch == backend.launch and member.backend.url == backend.url:
            member.backend, member.origin = backend, "file"
            return None
        new = self.members[backend.name] = Member(backend)
        if member is not None:
            new.draining = member.draining
            self._spawn(self._retire(member, follows=new))
        if backend.launch is None:
            return None
        new.resumes = backend.launch.on_demand
        if member is None:
            new.process = self._supervisor.add(self._spec(backend))
            return new
        new.held = new.anew = True  # until the one before it has ended: `_retire`
        return None

    def _spec(self, backend: Backend, *, api: bool = False) -> Spec:
        assert backend.launch is not None
        tries, alone = (1, True) if api else (3, False)
        return backend_spec(backend, backend.launch, self._run, self._env, self.patience_s, tries=tries, alone=alone)

    async def _retire(self, member: Member, follows: Member | None = None) -> None:
        """End the process of a backend that the configuration has no more, or has another way (`follows`)."""
        rested = member.asleep or (member.process is not None and member.process.state is State.STOPPED)
        if member.process is not None:
            await self._idle(member)
            await self._supervisor.discard(member.process)
        if follows is None or follows.backend.launch is None or self.members.get(follows.name) is not follows:
            return
        follows.process = self._supervisor.add(self._spec(follows.backend))
        if not rested:
            self._log(follows.name, "[llmtap] it has changed")
            await self._bring_alone(follows, on_demand=False)
            return
        by_hand = member.held and not member.resumes
        follows.anew, follows.held, follows.resumes = False, by_hand, follows.resumes and not by_hand
        self._dirty.set()
