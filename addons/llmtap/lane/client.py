"""One client connection: parses requests, serves them one after the other, keeps the time.

Requests that arrive while one is served wait their turn: parsed ones in `_queue`, further bytes unparsed in `_ahead`, up to
the high-water mark, after which the client is no longer read. A client that sends its FIN is gone, as for mitmproxy and nginx:
whoever closes a socket sends just that, and a generation must not run on for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, cast

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy.mode_specs import ProxyMode

from llmtap.core.errors import ApiError, dialect_of, error_body
from llmtap.lane import mitm
from llmtap.lane.inbound import Inbound, RequestParser
from llmtap.lane.refusals import TooSlow
from llmtap.lane.relay import Relay

if TYPE_CHECKING:
    from llmtap.lane.lane import Lane

log = logging.getLogger("llmtap.lane")
_RDHUP = getattr(select, "POLLRDHUP", 0)


class ClientConnection(asyncio.Protocol):
    """`upstream`: where requests without a plan go, (scheme, host, port), or None."""

    transport: asyncio.Transport
    conn: Client
    placeholder: Server

    def __init__(self, lane: Lane, mode: ProxyMode, upstream: tuple[str, str, int] | None) -> None:
        self.lane = lane
        self.upstream = upstream
        self.authority: bytes | None = None  # Host of requests without a plan, as mitmproxy's reverse mode sets it
        self._mode = mode
        self._parser = RequestParser(lane.limits, lane.kinds, self._parsed)
        self._queue: deque[Inbound] = deque()
        self._ahead = self._parser.beyond
        self._relay: Relay | None = None
        self._opening = False
        self._advancing = False
        self._lingering = False
        self._lingered = 0
        self._read_paused = False
        self._served = 0
        self._since = 0.0  # when the current wait began: for a head, between requests, lingering
        self._reading: tuple[Inbound, float] | None = None  # a body someone waits for, and since when
        self._mark = (0, 0.0)  # progress of that body, or of writing: amount, when it last changed
        self._drained: asyncio.Future[None] | None = None
        self.write_paused = False
        self.closing = False  # after the current request the connection ends
        self.dead = False

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(self.lane.limits.high_water)
        tls = transport.get_extra_info("ssl_object")
        now = time.time()
        self.conn = Client(
            peername=transport.get_extra_info("peername") or ("", 0),
            sockname=transport.get_extra_info("sockname") or ("", 0),
            timestamp_start=now,
            proxy_mode=self._mode,
            state=ConnectionState.OPEN,
            tls=tls is not None,
            timestamp_tls_setup=now if tls is not None else None,
        )
        address = self.upstream[1:] if self.upstream else self.conn.sockname[:2]
        self.placeholder = Server(address=address)
        if self.upstream is not None and not self.lane.keep_host:
            self.authority = self.lane.authority(self.upstream)
        self._since = self.lane.loop.time()
        self.lane.opened(self)
        waiting = self.lane.fire("client_connected", self.conn)
        if waiting is not None:
            self._opening = True
            self.lane.background(self._open(waiting))
        elif self.conn.error:
            self.transport.abort()

    async def _open(self, waiting: Awaitable[None]) -> None:
        await waiting
        self._opening = False
        if self.conn.error:
            self.transport.abort()
        else:
            self._advance()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._lingered += len(data)
            if self._lingered > self.lane.limits.linger_bytes:
                self.transport.abort()
            return
        if self._relay is None and not (self._queue or self._ahead or self._opening or self.write_paused):
            self._feed(data)
            if self._queue:
                self._advance()
        elif self._relay is not None and self._relay.reading and not self._ahead:
            self._parser.feed(data)
        else:
            self._ahead += data
            if len(self._ahead) > self.lane.limits.high_water and not self._read_paused:
                self._read_paused = True
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.dead = True
        self.conn.state = ConnectionState.CLOSED
        self.conn.timestamp_end = time.time()
        self._queue.clear()
        self._ahead.clear()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._gone()
        self._parser.close()
        self.lane.closed(self)
        waiting = self.lane.fire("client_disconnected", self.conn)
        if waiting is not None:
            self.lane.background(waiting)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._mark = (self.transport.get_write_buffer_size(), self.lane.loop.time())
        if self._relay is not None:
            self._relay.client_full()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._relay is not None:
            self._relay.client_ready()
        else:
            self._advance()

    # ---- requests

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        new = parser.between
        if new:
            parser.limits = self.lane.limits
        parser.feed(data)
        if new and parser.in_head:
            self._since = self.lane.loop.time()

    def _parsed(self, inbound: Inbound) -> None:
        if self.closing:
            return
        if len(self._queue) >= self.lane.limits.max_pipelined:
            self._parser.dead = True
            self._queue[-1].keep_alive = False
            return
        self._queue.append(inbound)

    def _advance(self) -> None:
        """Serve what is there. A loop, not a recursion: many requests may be answered at once."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while not (self.dead or self.closing or self.write_paused or self._opening):
                if self._relay is not None:
                    if not (self._ahead and self._relay.reading):
                        break
                    data = bytes(self._ahead)  # the rest of its body came while it had to wait
                    self._ahead.clear()
                    self._parser.feed(data)
                elif self._queue:
                    self._serve(self._queue.popleft())
                elif self._ahead:
                    data = bytes(self._ahead)
                    self._ahead.clear()
                    self._feed(data)
                else:
                    break
        finally:
            self._advancing = False
        if self._read_paused and not self.dead and len(self._ahead) <= self.lane.limits.high_water:
            self._read_paused = False
            self.transport.resume_reading()

    def _serve(self, inbound: Inbound) -> None:
        self._served += 1
        if inbound.refusal is not None:
            self._refuse(inbound, inbound.refusal)
            return
        relay = self._relay = Relay(self, inbound)
        # what the loop's eager factory makes of `create_task`, at half the price: when this returns it has run to its first wait
        relay.task = asyncio.Task(relay.run(), loop=self.lane.loop, eager_start=True)

    def _refuse(self, inbound: Inbound, error: ApiError) -> None:
        """Answer what never became a flow: stock mitmproxy fires no hooks for an unreadable head either."""
        target = inbound.target.decode("ascii", "replace")
        body = error_body(error, dialect_of(target))
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (
            error.status,
            reason_of(error.status),
            len(body),
        )
        self.transport.write(head if inbound.method == b"HEAD" else head + body)
        log.info("%s: %s", self.conn.peername[0], error.message)
        self.end(linger=True)

    def finished(self, keep: bool, unread: bool) -> None:
        """The current exchange is over. `unread`: its request was not read to the end."""
        self._relay = None
        self._reading = None
        if self.dead:
            return
        self._since = self.lane.loop.time()
        if not keep or self.closing:
            self.end(linger=unread)
        else:
            self._advance()

    def end(self, linger: bool = False) -> None:
        """Close when everything is written. `linger`: read on for a moment, else unread bytes would make the kernel send a
        reset, and the client might never see the answer."""
        self.closing = True
        if not linger or self._lingering:
            self.transport.close()
            return
        self._lingering = True
        self._since = self.lane.loop.time()
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def close_when_idle(self) -> None:
        """The gateway stops: end now if nothing is in flight, else after the current request."""
        self.closing = True
        if self._relay is None:
            self.transport.close()

    def stop(self) -> bool:
        """Patience is over; see `Relay.stop`."""
        return self._relay is not None and self._relay.stop()

    # ---- for the exchange

    def write_at_once(self, at_once: bool) -> None:
        """uvloop keeps what is written until the end of its turn, unless more is buffered than the limit: one call for what
        comes together, and many clients woken together. `at_once`: a first token would wait for all that is to be done with
        it, and a turn's first stream for its last. A client whose socket is full stops its backend then. Not with TLS, which
        with a limit of nothing would write nothing at all."""
        if not self.conn.tls:
            self.transport.set_write_buffer_limits(0 if at_once else self.lane.limits.high_water)

    def expect_body(self, inbound: Inbound) -> None:
        """Someone waits for the rest of this request: from now on it has to keep coming."""
        now = self.lane.loop.time()
        self._reading = (inbound, now)
        self._mark = (inbound.received, now)

    def expect_nothing(self) -> None:
        """Nobody waits for it any more, or we cannot take it for now."""
        self._reading = None

    async def drained(self) -> None:
        """Until the client has taken enough of what was written, or is gone."""
        if self.write_paused and not self.dead:
            self._drained = self.lane.loop.create_future()
            await self._drained

    def take_ahead(self) -> bytes:
        """What came behind a websocket's handshake."""
        data = bytes(self._ahead)
        self._ahead.clear()
        return data

    def pause(self) -> None:
        """Do not read for now. For whoever has taken the connection over."""
        if not self._read_paused and not self.dead:
            self._read_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._read_paused and not self.dead:
            self._read_paused = False
            self.transport.resume_reading()

    # ---- time

    def tick(self, now: float) -> None:
        """Looked over every `LaneLimits.tick_s`."""
        limits = self.lane.limits
        if self._lingering:
            if now - self._since > limits.linger_s:
                self.transport.close()
                if now - self._since > limits.linger_s + limits.write_timeout_s:
                    self.transport.abort()
            return
        if self._relay is not None:
            self._relay.tick(now)
        if self.write_paused and self._stalled(self.transport.get_write_buffer_size(), now, limits.write_timeout_s):
            self.transport.abort()
        elif self._read_paused and hung_up(self.transport.get_extra_info("socket")):
            self._gone()
            self.transport.abort()
        elif self._reading is not None:
            self._tick_body(*self._reading, now)
        elif self._relay is None and not self._opening:
            if self._parser.in_head:
                if now - self._since > limits.head_timeout_s:
                    self._refuse(Inbound(), TooSlow("the request head did not arrive in time"))
            elif now - self._since > (limits.keepalive_timeout_s if self._served else limits.head_timeout_s):
                self.end()

    def _tick_body(self, inbound: Inbound, since: float, now: float) -> None:
        limits = self.lane.limits
        slow = now - since > limits.body_timeout_s + inbound.received / limits.min_body_rate
        if not inbound.complete and (self._stalled(inbound.received, now, limits.body_timeout_s) or slow):
            self._reading = None
            self._parser.dead = True
            inbound.refuse(TooSlow("the request body did not arrive in time"))

    def _stalled(self, amount: int, now: float, seconds: float) -> bool:
        """Whether `amount` has been the same for too long."""
        if amount != self._mark[0]:
            self._mark = (amount, now)
        return now - self._mark[1] > seconds

    # ---- the end

    def _gone(self) -> None:
        if self._relay is not None:
            self._relay.client_gone()

    async def server_event(self, event: object) -> None:
        """What mitmproxy's `inject.*` commands call."""
        message = mitm.injected(event)
        if message is None or self._relay is None or not self._relay.inject(message):
            log.warning("messages can be injected into open websockets only")


def hung_up(sock: socket.socket | None) -> bool:
    """Whether the peer has closed, seen past bytes nobody has read. Linux; elsewhere False."""
    if not _RDHUP or sock is None or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), _RDHUP)
    return bool(poll.poll(0))


def reason_of(status: int) -> bytes:
    return mitm.REASONS.get(status, b"Error")
