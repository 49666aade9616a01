"""Small requests that arrive together go to a backend as one: its reply is cut up again, and nobody notices.

The first waits `max_wait_ms` for others that are equal in everything but what they ask; when so many have come that the batch
is full it leaves at once. One that stayed alone goes its ordinary way, and so do all when the request as one is refused: a
prompt that is too long is then answered to the one who sent it. Those who leave are not waited for; when all have left, so
does the request. It helps with embeddings and short completions of many clients; vLLM puts requests of its own accord into
batches on the GPU, what is saved is the handling of each. Needs the gateway mode.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from mitmproxy import http

from llmtap.core import config as c
from llmtap.core.errors import ApiError, ClientLeft
from llmtap.exchange import Exchange
from llmtap.policy.batch import ITEMS, PATHS, Part, Reply, Unsplittable, combine, part_of

log = logging.getLogger("llmtap.batching")
#: (a flow like it, path, body, priority) → what was seen of it, status, headers, content
Ask = Callable[[http.HTTPFlow, str, bytes, int], Awaitable[tuple[Exchange, int, http.Headers, bytes]]]


@dataclass(slots=True, eq=False)
class _Member:
    """One request of a batch. `reply`: its own reply, None when it shall go alone."""

    flow: http.HTTPFlow
    ex: Exchange
    part: Part
    came: float
    reply: asyncio.Future[_Own | None]


@dataclass(frozen=True, slots=True)
class _Own:
    """One request's share of a reply. `again`: another one of the batch has asked the very same, and pays for it."""

    asked: Exchange
    content: bytes
    again: bool


@dataclass(slots=True, eq=False)
class _Batch:
    """Requests on their way as one, or still gathering."""

    group: bytes
    members: list[_Member] = field(default_factory=list)
    items: int = 0
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


class Batching:
    """Policy. `ask` carries out a request as one, None while nobody can; `observe` is told how many went together and how long
    each had waited."""

    name = "batching"

    def __init__(
        self,
        config: c.Batching,
        ask: Ask | None = None,
        observe: Callable[[str | None, int, list[float]], None] = lambda model, size, waits: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ask = ask
        self.aliases: Mapping[str, str] = {}
        self._most = config.max_batch_size
        self._wait_s = config.max_wait_ms / 1000
        self._endpoints = frozenset(ITEMS if config.chat else ITEMS.keys() - {"chat"})
        self._observe = observe
        self._clock = clock
        self._gathering: dict[bytes, _Batch] = {}
        self._members: dict[Exchange, tuple[_Batch, _Member]] = {}

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> Awaitable[None] | None:
        parsed = ex.parsed
        if self.ask is None or ex.route is None or parsed is None or not parsed.exact or not ex.lane or ex.direct is not None:
            return None
        if ex.endpoint.name not in self._endpoints:
            return None
        part = part_of(ex.endpoint.name, flow.request.path, parsed.obj, self._most)
        return None if part is None else self._gather(flow, ex, part)

    async def _gather(self, flow: http.HTTPFlow, ex: Exchange, part: Part) -> None:
        """Wait for the own share of the reply. Returns without one when the request has to go alone; raises the batch's
        ApiError."""
        loop = asyncio.get_running_loop()
        batch = self._gathering.get(part.group)
        if batch is not None and batch.items + len(part.items) > self._most:
            self._leave(batch)
            batch = None
        if batch is None:
            batch = self._gathering[part.group] = _Batch(part.group)
            batch.timer = loop.call_later(self._wait_s, self._leave, batch)
        member = _Member(flow, ex, part, self._clock(), loop.create_future())
        batch.members.append(member)
        batch.items += len(part.items)
        self._members[ex] = (batch, member)
        if batch.items >= self._most:
            self._leave(batch)
        try:
            own = await member.reply
        finally:
            self._members.pop(ex, None)
        if own is None or ex.outcome != "open":
            return
        ex.route = None  # it needs no backend any more
        ex.backend, ex.forwarded, ex.queue_s = own.asked.backend, own.asked.forwarded, own.asked.queue_s
        if own.again:
            ex.cache = "shared"
        now = time.time()
        headers = http.Headers(((b"content-type", b"application/json"), (b"content-length", b"%d" % len(own.content))))
        flow.response = http.Response(b"HTTP/1.1", 200, b"OK", headers, own.content, None, now, now)

    def _leave(self, batch: _Batch) -> None:
        """Nobody joins it any more: off it goes."""
        if self._gathering.get(batch.group) is batch:
            del self._gathering[batch.group]
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        if len(batch.members) > 1:
            batch.task = asyncio.get_running_loop().create_task(self._carry_out(batch), name="llmtap batch")
        else:
            self._each_alone(batch)

    async def _carry_out(self, batch: _Batch) -> None:
        try:
            await self._ask_for(batch)
        except ApiError as error:
            self._fail(batch, error)
        except asyncio.CancelledError:
            self._fail(batch, ClientLeft("everybody has left"))
            raise
        except Exception as error:
            log.error("a batch failed", exc_info=(type(error), error, error.__traceback__))
            self._each_alone(batch)

    async def _ask_for(self, batch: _Batch) -> None:
        members = batch.members
        first = members[0]
        name, parsed = first.ex.endpoint.name, first.ex.parsed
        if self.ask is None or parsed is None:
            self._each_alone(batch)
            return
        now = self._clock()
        self._observe(first.ex.model, len(members), [now - member.came for member in members])
        body, places = combine(name, parsed.obj, [member.part for member in members])
        path = PATHS.get(name, first.ex.path)
        asked, status, _, content = await self.ask(first.flow, path, body, max(member.ex.priority for member in members))
        if status != 200:
            self._each_alone(batch)
            return
        try:
            reply = Reply(name, content, places)
        except Unsplittable:
            log.warning("the reply to a batch of %d could not be cut up; each goes alone", len(members))
            self._each_alone(batch)
            return
        seen: set[bytes] = set()
        for member in members:
            again = seen.issuperset(member.part.items)
            seen.update(member.part.items)
            if not member.reply.done():
                member.reply.set_result(_Own(asked, reply.part(member.part), again))

    @staticmethod
    def _each_alone(batch: _Batch) -> None:
        for member in batch.members:
            if not member.reply.done():
                member.reply.set_result(None)

    @staticmethod
    def _fail(batch: _Batch, error: ApiError) -> None:
        for member in batch.members:
            if not member.reply.done():
                own = type(error)(error.message, code=error.code, param=error.param, retry_after_s=error.retry_after_s)
                member.reply.set_exception(own)

    # ---- those who leave

    def client_left(self, client: str) -> None:
        """The connection of this id is gone: its requests leave their batches."""
        for ex, (_, member) in list(self._members.items()):
            if member.flow.client_conn.id == client:
                self._part(ex, ClientLeft("the client closed the connection"))

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if self._members and ex in self._members:
            self._part(ex, ClientLeft("the request has ended"))

    def _part(self, ex: Exchange, error: ApiError) -> None:
        batch, member = self._members.pop(ex)
        if not member.reply.done():
            member.reply.set_exception(error)
        if batch.task is None:
            batch.members.remove(member)
            batch.items -= len(member.part.items)
        elif all(other.reply.done() for other in batch.members):
            batch.task.cancel()
