"""A websocket between a client and a backend, from the 101 to the end, with mitmproxy's hooks.

    websocket_start   websocket_message, for each message either way   websocket_end, exactly once

Both connections are taken over from their HTTP protocols; what arrives waits in line and is worked off by one coroutine, so
that a hook that takes its time holds up what comes after it and nothing is overtaken. A side that takes no more stops the
other from being read. Of the messages `flow.websocket` keeps the last ones only: a session may go on for hours.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol, cast

from mitmproxy import http
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.frame_protocol import Opcode

from llmtap.core.errors import ApiError
from llmtap.lane.refusals import Killed, Stopping
from llmtap.lane.timing import Watch
from llmtap.lane.upstream import Upstream
from llmtap.lane.websocket import ABNORMAL, FAILED, GOING_AWAY, Closing, Codec, Message

if TYPE_CHECKING:
    from llmtap.lane.client import ClientConnection

log = logging.getLogger("llmtap.lane")
_BACKEND_GONE = "the backend closed the connection"
_CLIENT_GONE = "the client closed the connection"


class _Owner(Protocol):
    """The protocol a side is taken over from: it goes on keeping the books."""

    @property
    def transport(self) -> asyncio.Transport: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class _Side(asyncio.Protocol):
    """One end. `line`: what has arrived and waits; None is the end of the connection."""

    def __init__(self, tunnel: Tunnel, owner: _Owner, codec: Codec) -> None:
        self.owner = owner
        self.transport = owner.transport
        self.codec = codec
        self.other: _Side
        self.line: deque[bytes | WebSocketMessage | None] = deque()
        self.waiting = 0  # bytes in line
        self.full = False
        self.lost = False
        self._tunnel = tunnel

    def data_received(self, data: bytes) -> None:
        self.line.append(data)
        self.waiting += len(data)
        self._tunnel.arrived()
        self.read()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.line.append(None)
        self.owner.connection_lost(exc)
        self._tunnel.arrived()

    def pause_writing(self) -> None:
        self.full = True
        self.owner.pause_writing()
        self.other.read()

    def resume_writing(self) -> None:
        self.full = False
        self.owner.resume_writing()
        self.other.read()
        self._tunnel.arrived()

    def read(self) -> None:
        """Read on, or not: when enough is in line, or the other side takes no more."""
        if self.lost:
            return
        if self.waiting > self._tunnel.high_water or self.other.full:
            self.owner.pause()
        else:
            self.owner.resume()

    def next(self) -> bytes | WebSocketMessage | None:
        item = self.line.popleft()
        if isinstance(item, bytes):
            self.waiting -= len(item)
            self.read()
        return item

    @property
    def ready(self) -> bool:
        return bool(self.line) and (self.lost or self.other.lost or not self.other.full)

    def write(self, data: bytes) -> None:
        if data and not self.lost:
            self.transport.write(data)


class Tunnel:
    """`run` it once, after the 101 has been written. Raises Killed; ValueError from the constructor for an odd handshake."""

    def __init__(self, flow: http.HTTPFlow, client: ClientConnection, upstream: Upstream, watch: Watch) -> None:
        lane = client.lane
        limits = lane.limits
        self.high_water = limits.high_water
        self._lane = lane
        self._flow = flow
        self._watch = watch
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._kept = 0  # bytes of the messages that are kept
        extensions = flow.response.headers.get("sec-websocket-extensions", "") if flow.response is not None else ""
        self._client = _Side(self, client, Codec(True, extensions, limits.max_body_bytes))
        self._server = _Side(self, upstream, Codec(False, extensions, limits.max_body_bytes))
        self._client.other, self._server.other = self._server, self._client
        self._sides = [self._client, self._server]

    async def run(self, client_ahead: bytes, server_ahead: bytes) -> None:
        """`..._ahead`: bytes that came behind the heads of request and response."""
        try:
            self._server.transport.set_write_buffer_limits(self.high_water)
            for side, ahead in ((self._client, client_ahead), (self._server, server_ahead)):
                if side.transport.is_closing():
                    side.lost = True
                    side.line.append(None)
                    continue
                side.transport.set_protocol(side)
                side.read()
                if ahead:
                    side.data_received(ahead)
            await self._fire("websocket_start")
            await self._relay()
        except BaseException:
            await self._over(None, ABNORMAL, None)
            raise
        finally:
            self._close()

    async def _relay(self) -> None:
        while True:
            side = await self._next()
            if side is None:
                await self._cut()
                return
            item = side.next()
            if item is None:
                await self._lost(side)
                return
            if isinstance(item, WebSocketMessage):
                await self._message(
                    side, Message([item.content.decode("utf-8", "replace") if item.is_text else item.content]), True
                )
                continue
            for event in side.codec.feed(item):
                if isinstance(event, Message):
                    await self._message(side, event)
                elif isinstance(event, Closing):
                    await self._closing(side, event)
                    return
                else:
                    side.other.write(side.other.codec.control(event))

    async def _next(self) -> _Side | None:
        """The side whose turn it is; None when it was cut off."""
        while self._failure is None:
            for side in self._sides:
                if side.ready:
                    self._sides.reverse()  # neither keeps the other waiting
                    return side
            self._waiter = self._lane.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return None

    async def _message(self, side: _Side, whole: Message, injected: bool = False) -> None:
        content = whole.content
        kind = Opcode.TEXT if whole.is_text else Opcode.BINARY
        message = WebSocketMessage(kind, side is self._client, content, injected=injected)
        self._keep(message)
        await self._fire("websocket_message")
        if message.dropped or self._flow.error is not None:
            if self._flow.error is not None:
                self.fail(Killed())
            return
        frames = whole.frames
        if message.content != content:
            frames = [message.content.decode("utf-8", "replace") if whole.is_text else message.content]
        side.other.write(side.other.codec.message(frames))

    def _keep(self, message: WebSocketMessage) -> None:
        limits = self._lane.limits
        messages = self._data.messages
        messages.append(message)
        self._kept += len(message.content)
        while len(messages) > 1 and (len(messages) > limits.kept_messages or self._kept > limits.kept_bytes):
            self._kept -= len(messages.pop(0).content)

    # ---- from outside

    def arrived(self) -> None:
        self._watch.touched = self._lane.loop.time()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """End it: the flow was killed, or a time is up."""
        if self._failure is None:
            self._failure = error
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def inject(self, message: WebSocketMessage) -> None:
        """A message somebody made, as if its sender had sent it."""
        (self._client if message.from_client else self._server).line.append(message)
        self.arrived()

    # ---- ends

    async def _closing(self, side: _Side, last: Closing) -> None:
        """A side has closed, or broke the protocol."""
        await self._over(side, last.code, last.reason)
        side.write(side.codec.close(last.code, last.reason))
        if last.clean:
            await self._farewell(side.other, last.code, last.reason)
        else:
            await self._farewell(side.other, *self._told(side))

    async def _lost(self, side: _Side) -> None:
        """A side's connection broke off without a close frame."""
        await self._over(side, ABNORMAL, None)
        await self._farewell(side.other, *self._told(side))

    def _told(self, side: _Side) -> tuple[int, str]:
        """What the other side is told of a side that is gone."""
        return (GOING_AWAY, _CLIENT_GONE) if side is self._client else (FAILED, _BACKEND_GONE)

    async def _cut(self) -> None:
        failure = self._failure
        if isinstance(failure, ApiError):
            self._lane.failing(self._flow, failure)
            await self._over(None, GOING_AWAY, failure.message)
            self._client.write(self._client.codec.close(GOING_AWAY, failure.message))
            self._server.write(self._server.codec.close(GOING_AWAY, failure.message))
        elif isinstance(failure, Stopping):
            await self._over(None, GOING_AWAY, str(failure))
            for side in self._sides:
                side.write(side.codec.close(GOING_AWAY, str(failure)))
            await self._answered(*self._sides)
        else:
            await self._over(None, ABNORMAL, None)
            self._server.transport.abort()
            raise Killed

    async def _farewell(self, side: _Side, code: int, reason: str | None) -> None:
        """Tell a side that it is over, and give it a moment to say the same: else a reset could overtake our close frame."""
        side.write(side.codec.close(code, reason))
        side.other.transport.close()
        side.other.full = False
        await self._answered(side)

    async def _answered(self, *sides: _Side) -> None:
        """Until these sides have said goodbye too, or are gone, or time is up."""
        waiting = [side for side in sides if not side.lost]
        try:
            async with asyncio.timeout(self._lane.limits.linger_s):
                while waiting:
                    side = next((side for side in waiting if side.line), None)
                    if side is None:
                        self._waiter = self._lane.loop.create_future()
                        await self._waiter
                        waiting = [side for side in waiting if side.line or not side.lost]
                        continue
                    item = side.next()
                    if item is None or (
                        isinstance(item, bytes) and any(isinstance(event, Closing) for event in side.codec.feed(item))
                    ):
                        waiting.remove(side)
        except TimeoutError:
            log.debug("a websocket's peer did not answer the close frame")
        finally:
            self._waiter = None

    async def _over(self, by: _Side | None, code: int, reason: str | None) -> None:
        """The hook `websocket_end`, before anybody is told: who saw the end finds everything written."""
        if self._ended:
            return
        self._ended = True
        data = self._data
        data.timestamp_end = time.time()
        data.closed_by_client = by is self._client
        data.close_code = code
        data.close_reason = reason
        await self._fire("websocket_end")

    def _close(self) -> None:
        for side in self._sides:
            if not side.lost:
                side.transport.close()
        if not self._server.lost and self._server.transport.get_write_buffer_size():
            self._lane.loop.call_later(self._lane.limits.linger_s, self._server.transport.abort)

    # ---- hooks

    @property
    def _data(self) -> WebSocketData:
        return cast(WebSocketData, self._flow.websocket)

    async def _fire(self, hook: str) -> None:
        waiting: Awaitable[None] | None = self._lane.fire_flow(hook, self._flow)
        if waiting is not None:
            await waiting
