"""Identical requests at the same time: one of them asks a backend, all get its reply.

The first is the leader: it goes on as if it were alone, and what comes for it is passed on. Those that come while it runs
follow: they get what has arrived so far, then every piece as it comes. The generation goes on while any of them is left: when
the leader's client leaves, the backend is read on for the others; when the last one leaves, it is stopped. A failure is
everybody's, once; a leader that ends before anything has come makes the next in line the leader. Needs the gateway mode:
mitmproxy's own cannot.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from mitmproxy import http

from llmtap.core import config as c
from llmtap.core.errors import ApiError, ClientLeft, UpstreamFailed
from llmtap.core.plan import Plan
from llmtap.exchange import Exchange
from llmtap.policy.cache_key import CACHEABLE, cache_key, deterministic

#: of the backend's reply, what followers are given too
_HEADERS = frozenset((b"content-type", b"retry-after"))
#: wishes (x-llmtap-cache) of those who want a reply of their own
_ALONE = (b"no-cache", b"no-store")


class Flight:
    """One reply on its way, and who waits for it. `leader` asks the backend."""

    def __init__(self, leader: Exchange) -> None:
        self.leader = leader
        self.followers = 0
        self.status = 0
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        self.streams = False
        self.pieces: list[bytes] = []
        self.error: ApiError | None = None
        self.ended = False
        self.again = False  # it came to nothing: whoever waits shall try anew
        self._waiters: dict[asyncio.Future[None], None] = {}  # in the order of their coming

    # ---- what becomes of the leader

    def begin(self, response: http.Response) -> None:
        """The head has come."""
        self.status = response.data.status_code
        self.headers = tuple(field for field in response.data.headers.fields if field[0].lower() in _HEADERS)
        self.streams = callable(response.stream)
        if self.streams:
            self._tell()

    def piece(self, data: bytes) -> None:
        """A piece of the reply; b"" is its clean end."""
        if data:
            self.pieces.append(data)
        else:
            self.ended = True
        self._tell()

    def end(self, error: ApiError | None, again: bool = False) -> None:
        """The leader is done. Does nothing after a clean end."""
        if not self.ended:
            self.ended, self.error, self.again = True, error, again
            self._tell()

    def protect(self) -> None:
        """Let the backend's reply depend on the leader's client only while nobody follows."""
        plan = self.leader.plan
        if plan is not None:
            plan.shared = self.followers > 0
            if plan.shared and plan.resume is not None:
                plan.resume()

    # ---- those who follow

    def join(self) -> None:
        """One more."""
        self.followers += 1
        self.protect()

    def leave(self) -> None:
        """One less. The last of all stops the backend."""
        self.followers -= 1
        self.protect()
        plan = self.leader.plan
        if not self.followers and not self.ended and plan is not None and plan.left_at is not None and plan.cancel is not None:
            plan.cancel(ClientLeft("nobody waits for the reply any more"))

    def changed(self) -> asyncio.Future[None]:
        """Done when there is more to know."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        return waiter

    def _tell(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, {}
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def body(self) -> AsyncIterator[bytes]:
        """The reply from its beginning, for one who has joined. Raises its ApiError."""
        at = 0
        while True:
            if at < len(self.pieces):
                data = b"".join(self.pieces[at:])
                at = len(self.pieces)
                yield data
            elif self.error is not None:
                raise copy.copy(self.error)  # each its own: an exception gathers the frames it passes
            elif self.ended:
                return
            else:
                await self.changed()


class SingleFlight:
    """Policy: makes a request a leader or lets it follow. `count` is told of those that follow."""

    name = "single_flight"

    def __init__(self, config: c.SingleFlight, count: Callable[[], None] = lambda: None) -> None:
        self._count = count
        self._flights: dict[bytes, Flight] = {}
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}  # by client
        self.reload(config)

    def __len__(self) -> int:
        return len(self._flights)

    def reload(self, config: c.SingleFlight) -> None:
        """Other rules from now on."""
        self._shared_by_all = config.scope == "all"
        self._only_deterministic = config.only_deterministic

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> Awaitable[None] | None:
        if ex.route is None:
            return None  # it has its answer
        key = self._key(flow, ex)
        if key is None:
            return None
        flight = self._flights.get(key)
        if flight is None:
            self._lead(key, ex)
            return None
        return self._follow(key, flight, flow, ex)

    def _key(self, flow: http.HTTPFlow, ex: Exchange) -> bytes | None:
        parsed = ex.parsed
        if parsed is None or not parsed.exact or not ex.lane or ex.direct is not None or ex.cache_wish in _ALONE:
            return None
        name = ex.endpoint.name
        if name not in CACHEABLE or (self._only_deterministic and not deterministic(name, ex.endpoint.generates, parsed.obj)):
            return None
        owner = "" if self._shared_by_all else f"key:{ex.key_name}"
        query = flow.request.path.partition("?")[2]
        key = cache_key(name, f"{ex.path}?{query}", parsed.obj, ex.model, owner)
        return None if key is None else key + (b"stream" if ex.stream else b"whole")

    def _lead(self, key: bytes, ex: Exchange) -> None:
        ex.flight = self._flights[key] = Flight(ex)
        ex.flight_key = key

    async def _follow(self, key: bytes, flight: Flight, flow: http.HTTPFlow, ex: Exchange) -> None:
        """Wait for the head (of what streams) or the whole reply. Raises the leader's ApiError."""
        while True:
            flight.join()
            ex.following = flight
            while not (flight.ended or (flight.streams and flight.status)):
                await self._more(flight, flow.client_conn.id)
            if not flight.again:
                break
            self._part(ex)
            other = self._flights.get(key)
            if other is None:
                self._lead(key, ex)
                return
            flight = other
        if ex.outcome != "open":
            return
        if flight.error is not None and not flight.pieces:
            raise copy.copy(flight.error)
        self._count()
        ex.cache = "shared"
        ex.route = None  # it needs no backend
        headers = http.Headers(flight.headers)
        now = time.time()
        if flight.streams:
            flow.response = http.Response(b"HTTP/1.1", flight.status, b"", headers, None, None, now, None)
            ex.plan = Plan([], body=flight.body())
        else:
            body = b"".join(flight.pieces)
            headers["content-length"] = str(len(body))
            flow.response = http.Response(b"HTTP/1.1", flight.status, b"", headers, body, None, now, now)

    async def _more(self, flight: Flight, client: str) -> None:
        """Until there is more to know. Raises ClientLeft when the client of this connection has gone."""
        waiter = flight.changed()
        mine = self._waiting.setdefault(client, set())
        mine.add(waiter)
        try:
            await waiter
        finally:
            mine.discard(waiter)
            if not mine:
                self._waiting.pop(client, None)

    def client_left(self, client: str) -> None:
        """The connection of this id is gone: nobody of it waits any longer."""
        for waiter in list(self._waiting.get(client, ())):
            if not waiter.done():
                waiter.set_exception(ClientLeft("the client closed the connection"))

    def _part(self, ex: Exchange) -> None:
        following, ex.following = ex.following, None
        if following is not None:
            following.leave()

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self._part(ex)
        flight = ex.flight
        if flight is None:
            return
        ex.flight = None
        self._flights.pop(ex.flight_key, None)
        content = flow.response.data.content if flow.response is not None else None
        if content is not None and flight.status and not (flight.ended or flight.streams):
            flight.piece(content)  # read to its end for those who follow, although the leader's client has left
            flight.piece(b"")
        flight.end(*_why(ex, flight))


def _why(ex: Exchange, flight: Flight) -> tuple[ApiError | None, bool]:
    """What those who follow have to know when the leader has ended before its reply: (error, whether to try anew)."""
    if ex.outcome == "ok":
        return None, False
    error = ex.failure or ex.refusal
    if ex.outcome == "client_abort" or isinstance(error, ClientLeft):
        return UpstreamFailed("the shared reply was given up"), not flight.status
    return error or UpstreamFailed("the shared reply ended before it was complete"), False


class FlightFill:
    """Observer: passes on what comes for a leader. It stands behind the tee, whose pieces it sees before anything is withheld."""

    name = "single_flight_fill"

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.flight is not None:
            ex.flight.protect()  # there is a plan now

    def on_responseheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        flight, response = ex.flight, flow.response
        if flight is None or response is None:
            return
        flight.begin(response)
        if callable(response.stream):
            response.stream = _Passing(response.stream, flight)

    def on_response(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        flight, response = ex.flight, flow.response
        if flight is not None and response is not None and not flight.streams and ex.refusal is None:
            flight.piece(response.data.content or b"")
            flight.piece(b"")


class _Passing:
    """A reply's pieces on their way to `forward`, and to those who follow."""

    __slots__ = ("_flight", "_forward")

    def __init__(self, forward: Callable[[bytes], Iterable[bytes] | bytes], flight: Flight) -> None:
        self._forward = forward
        self._flight = flight

    def __call__(self, data: bytes) -> Iterable[bytes] | bytes:
        self._flight.piece(data)
        return self._forward(data)
