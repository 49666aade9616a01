"""A request body on its way to a backend as it comes, for requests that need not be whole before they are sent.

    client's socket → Inbound.sink → the addon's callable → backend's socket       no task wakes up for a piece

What the backend does not take yet waits here up to the high-water mark; above it the client is not read. What was sent is kept
up to the same size: so long another backend can be given the same beginning. As in mitmproxy the hook `request` fires when the
body has gone out, before its end is told to the backend.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from mitmproxy import http

from llmtap.core.errors import ApiError, InternalError
from llmtap.lane import mitm
from llmtap.lane.attempts import Attempts
from llmtap.lane.head import BadHead, build, is_target, trailer_lines
from llmtap.lane.inbound import Inbound
from llmtap.lane.refusals import Killed
from llmtap.lane.upstream import Failure, Upstream

if TYPE_CHECKING:
    from llmtap.core.plan import Plan, Target
    from llmtap.lane.client import ClientConnection

log = logging.getLogger("llmtap.lane")
#: of a body that is to be looked at afterwards; a larger one is not stored at all
_STORED_BYTES = 16 << 20
Look = Callable[[bytes], bool]


class Upload:
    """One body. Whoever decides where it goes may `look` at its beginning first.

    `done`: its end has been handed to the backend. `replayable`: it can still be sent from its beginning.
    """

    def __init__(
        self, client: ClientConnection, inbound: Inbound, flow: http.HTTPFlow, fail: Callable[[Exception], None]
    ) -> None:
        self.done = False
        self.chunked = inbound.length is None or callable(flow.request.stream)
        self._client = client
        self._lane = client.lane
        self._inbound = inbound
        self._flow = flow
        self._fail = fail  # tells whoever waits for the backend
        self._change = flow.request.stream if callable(flow.request.stream) else None
        self._line: deque[bytes] = deque(inbound.parts)  # arrived, not sent
        self._waiting = sum(map(len, inbound.parts))
        self._room = client.lane.limits.high_water  # of the line
        self._sent: list[bytes] | None = []  # as the backend got it
        self._sent_size = 0
        self._stored: list[bytes] | None = [] if client.lane.stores_bodies else None
        self._upstream: Upstream | None = None
        self._full = False  # the backend takes no more
        self._wanted = False
        self._hooked = self._hook_done = False
        self._look: Look | None = None
        self._enough = False
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self.on_done: Callable[[], None] = _nobody
        self.on_full: Callable[[bool], None] = _nobody
        inbound.parts.clear()
        inbound.sink = self._arrived
        inbound.changed = self._inbound_changed

    @property
    def received(self) -> int:
        """Bytes of the body that have come so far."""
        return self._inbound.received

    @property
    def replayable(self) -> bool:
        return self._sent is not None

    # ---- before it is sent

    async def look(self, look: Look, limit: int) -> bool:
        """Show the body to `look`, piece by piece, until it has seen enough, or more than `limit` bytes have come (then the
        answer is False). Nothing is taken from the body. `look` goes on to see every later piece; what it raises ends the
        request. Raises ApiError, ClientGone or Killed."""
        for piece in self._line:
            if look(piece):
                self._look = look
                return True
        self._look = look
        self._room = max(self._room, limit)
        while not (self._enough or self._inbound.complete or self._waiting > limit):
            self._raise()
            self._want()
            self._waiter = self._lane.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._raise()
        self._room = self._lane.limits.high_water
        return self._enough or self._inbound.complete

    # ---- from the client

    def _arrived(self, data: bytes) -> None:
        self._line.append(data)
        self._waiting += len(data)
        if self._look is not None:
            try:
                self._enough = self._look(data) or self._enough
            except ApiError as error:
                self.fail(error)
                return
        self._wake()
        self._move()

    def _inbound_changed(self) -> None:
        refusal = self._inbound.refusal
        if refusal is not None:
            self.fail(refusal)
        elif self._inbound.complete:
            self._wake()
            self._move()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """It will not be completed: the client is gone, broke the rules, or the flow was killed."""
        if self.done:
            return
        if self._failure is None:
            self._failure = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        elif self._upstream is not None:
            self._fail(error)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _want(self) -> None:
        """From now on the client has to send."""
        inbound = self._inbound
        if inbound.complete:
            return
        if inbound.continue_expected:
            inbound.continue_expected = False
            if not inbound.received:
                self._client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._wanted:
            self._wanted = True
            self._client.expect_body(inbound)

    # ---- to the backend

    def begin(self, upstream: Upstream) -> None:
        """The head has been sent over this connection: the body follows. Raises what the body failed with meanwhile."""
        self._raise()
        self._upstream = upstream
        self._full = self.done = False
        upstream.feeder = self._backend_full
        upstream.transport.set_write_buffer_limits(self._lane.limits.high_water)
        for piece in self._sent or ():
            self._write(upstream, piece)
        self._want()
        self._move()

    def detach(self) -> None:
        """The connection is not used any more."""
        if self._upstream is not None:
            self._upstream.feeder = None
            self._upstream = None
            self._full = False

    def _backend_full(self, full: bool) -> None:
        self._full = full
        self.on_full(full)
        if not full:
            self._move()

    def _move(self) -> None:
        upstream = self._upstream
        if upstream is not None and not self.done and not upstream.transport.is_closing():
            while self._line and not self._full and self._upstream is upstream:
                data = self._line.popleft()
                self._waiting -= len(data)
                self._send(upstream, data)
            if not self._line and self._inbound.complete and self._upstream is upstream:
                self._finish(upstream)
        if self._inbound.complete:
            return
        if self._waiting > self._room:
            self._client.pause()
            self._client.expect_nothing()  # it is us who do not move
            self._wanted = False
        elif upstream is not None or self._waiter is not None:
            self._client.resume()
            self._want()

    def _send(self, upstream: Upstream, data: bytes) -> None:
        for piece in self._transformed(data):
            self._keep(piece)
            self._write(upstream, piece)

    def _write(self, upstream: Upstream, piece: bytes) -> None:
        upstream.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)

    def _keep(self, piece: bytes) -> None:
        if self._sent is not None:
            self._sent.append(piece)
            self._sent_size += len(piece)
            if self._sent_size > self._lane.limits.high_water:
                self._sent = None
        if self._stored is not None:
            self._stored.append(piece)
            if self.received > _STORED_BYTES:
                self._stored = None

    def _transformed(self, data: bytes) -> Iterable[bytes]:
        if self._change is None:
            return (data,) if data else ()
        try:
            out = self._change(data)
            pieces = (out,) if isinstance(out, bytes) else tuple(out)
        except Exception as error:
            log.error("stream callable failed", exc_info=(type(error), error, error.__traceback__))
            self.fail(InternalError("internal error; the request cannot be sent"))
            return ()
        return [piece for piece in pieces if piece]

    # ---- its end

    def _finish(self, upstream: Upstream) -> None:
        if not self._hooked:
            self._hooked = True
            if self._change is not None:
                self._send(upstream, b"")
            waiting = self._hook()
            if waiting is not None:
                self._lane.background(self._held(waiting))
                return
            self._hook_done = True
        if self._hook_done:
            self._end(upstream)

    def _hook(self) -> Awaitable[None] | None:
        data = self._flow.request.data
        data.timestamp_end = time.time()
        if self._inbound.trailers:
            data.trailers = mitm.headers(tuple(self._inbound.trailers))
        if self._stored is not None:
            data.content = b"".join(self._stored)
        return self._lane.fire_flow("request", self._flow)

    async def _held(self, waiting: Awaitable[None]) -> None:
        await waiting
        self._hook_done = True
        if self._flow.error is not None:
            self.fail(Killed())
        elif self._upstream is not None:
            self._end(self._upstream)

    def _end(self, upstream: Upstream) -> None:
        if self.done or upstream.closed:
            return
        self.done = True
        if self.chunked:
            lines = b"\r\n"
            trailers = self._flow.request.data.trailers
            if trailers is not None:
                try:
                    lines = trailer_lines(trailers.fields, self._lane.kinds)
                except BadHead as error:
                    log.error("trailers not sent: %s", error)
            upstream.transport.write(b"0\r\n" + lines)
        self.on_done()

    def stop(self) -> None:
        """No more of it is wanted: what still comes is dropped."""
        self.detach()
        self._line.clear()
        self._waiting = 0
        self._sent = None
        self._look = None
        self._fail = self.on_done = self.on_full = _nobody  # else a cycle would leave every flow to the garbage collector
        inbound = self._inbound
        if inbound.sink is not None:
            inbound.sink = inbound.changed = None
            inbound.lost = True
            self._client.expect_nothing()
            self._client.resume()


def _nobody(*_: object) -> None:
    """Nobody waits any more."""


class UploadAttempts(Attempts):
    """`Attempts` for such a body: over a new connection (a stale one would cost the body), again only while the body can be sent
    from its beginning. A backend that refuses before it has all is not sent the rest."""

    __slots__ = ("_upload",)

    def __init__(self, client: ClientConnection, inbound: Inbound, plan: Plan, upload: Upload) -> None:
        super().__init__(client, inbound, plan)
        self._upload = upload
        upload.on_done = self._sent
        upload.on_full = self._full

    @property
    def drains(self) -> bool:
        return self._upload.done and super().drains

    @property
    def may_retry(self) -> bool:
        return self._upload.replayable and super().may_retry

    async def obtain(self, flow: http.HTTPFlow) -> Upstream:
        upstream = await super().obtain(flow)
        if upstream.reply.status >= 400 and not self._upload.done:
            self._upload.stop()
        return upstream

    async def _attempt(self, flow: http.HTTPFlow, target: Target) -> Upstream:
        data = flow.request.data
        data.host, data.port, data.scheme = target.host, target.port, b"https" if target.tls else b"http"
        upload = self._upload
        head = self._head(data, target)
        self._upstream = upstream = await self._connect(target)
        flow.server_conn = upstream.server
        upstream.send(head, b"", data.method == b"HEAD")
        self.watch.phase("idle", 0.0)  # the client's pace is looked after by its connection
        try:
            upload.begin(upstream)
            await upstream.head()
        except Failure:
            upload.detach()
            self._upstream = None
            raise
        return upstream

    def _head(self, data: http.RequestData, target: Target) -> bytes:
        if data.path is not self._inbound.target and not is_target(data.path):
            raise InternalError("internal error; the request's path was made unusable")
        chunked = self._upload.chunked
        try:
            return build(
                b"%b %b HTTP/1.1" % (data.method, data.path),
                data.headers.fields,
                self._lane.kinds,
                length=None if chunked else self._inbound.length,
                chunked=chunked,
                host=target.host_header,
                replace=target.headers,
            )
        except BadHead as error:
            log.error("request not sent: %s", error)
            raise InternalError("internal error; the request's headers were made unusable") from None

    def _sent(self) -> None:
        if not self._answering:
            self.watch.phase("first_byte", self.plan.first_byte_s)
            self.plan.sent_at = self.watch.touched

    def _full(self, full: bool) -> None:
        if not self._answering:
            self.watch.phase("idle", self.plan.idle_s if full else 0.0)

    @property
    def _answering(self) -> bool:
        """The answer has begun: its own times count."""
        return self._upstream is None or self._upstream.reply.head_done

    def release(self) -> None:
        upload, upstream = self._upload, self._upstream
        upload.detach()
        if upstream is not None and not upload.done:
            self._upstream = None
            upstream.close()
        else:
            super().release()
