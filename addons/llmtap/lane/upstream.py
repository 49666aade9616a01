"""One connection to a backend: sends a request, hands out the response while it arrives, says how it failed.

While a response streams, `sink` is called from inside `data_received`: no task wakes up for a chunk. Without a sink the body
collects in the parser, and above the high-water mark the backend is no longer read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, cast

from mitmproxy.connection import Client, ConnectionState, Server

from llmtap.core.plan import FailureReason, Target
from llmtap.lane.reply import ReplyParser

if TYPE_CHECKING:
    from llmtap.lane.pool import Pool


class Failure(Exception):
    """The backend did not do its part. `str()` is for the client: it has nothing of the backend's bytes in it."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason: FailureReason = reason


class Upstream(asyncio.Protocol):
    """States: idle in the pool (`busy` false) → sent → head → complete → back to the pool, or failed, or closed."""

    def __init__(self, pool: Pool, target: Target, server: Server, client: Client) -> None:
        self._pool = pool
        self.key = pool.key(target)
        self.server = server
        self.client = client  # on whose behalf it was opened, for the hooks
        self.reply = ReplyParser(pool.kinds)
        self.transport: asyncio.Transport
        self.sink: Callable[[bytes], None] | None = None
        self.feeder: Callable[[bool], None] | None = None  # sends a body piece by piece: told when no more fits, and again
        self.failure: Exception | None = None
        self.busy = False
        self.answered = False  # at least one byte of the current response has come
        self.closed = False
        self.idle_since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._whole = False  # what the waiter waits for: the whole response, or its head
        self._first = False  # ... and the first piece of its body
        self._paused = False

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            self.close()  # unsolicited: it must never answer the next request
            return
        self.answered = True
        reply = self.reply
        reply.feed(data)
        if reply.parts:
            if self.sink is not None:
                self.sink(reply.take())
            elif not self._whole and reply.buffered > self._pool.high_water:
                self.pause()
        if reply.error is not None:
            self.fail(Failure("protocol", f"the backend's response is not valid HTTP: {reply.error}"))
        elif reply.complete or (reply.head_done and not self._whole and self._begun()):
            self._wake()

    def _begun(self) -> bool:
        reply = self.reply
        return not self._first or bool(reply.parts) or reply.switched or reply.status >= 400

    def eof_received(self) -> bool:
        return False  # a backend that stops sending is done with us

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.server.state = ConnectionState.CLOSED
        self.server.timestamp_end = time.time()
        self._pool.lost(self)
        if not self.busy or self.reply.complete:
            self.reply.closed()
            return
        whole = self.reply.closed()
        if exc is None and whole:
            self._wake()
        elif exc is None:
            self.fail(Failure("closed", "the backend closed the connection before its response was complete"))
        else:
            self.fail(Failure("reset", "the connection to the backend broke"))

    def pause_writing(self) -> None:
        if self.feeder is not None:
            self.feeder(True)

    def resume_writing(self) -> None:
        if self.feeder is not None:
            self.feeder(False)

    # ---- for the exchange

    def send(self, head: bytes, body: bytes, head_only: bool, upgrade: bool = False) -> None:
        """A whole request. `head_only`: it is a HEAD; `upgrade`: a websocket's handshake."""
        self.busy = True
        self.answered = False
        self.failure = None
        self.reply.expect(head_only, upgrade)
        if len(body) > 65536:  # two calls cost less than a copy
            self.transport.write(head)
            self.transport.write(body)
        else:
            self.transport.write(head + body if body else head)

    def head(self, first: bool = False) -> Coroutine[None, None, None]:
        """Await it: until the response's head is there; with `first` until the body of a good one has begun, too: so long another
        backend can be asked. Raises Failure, or what `fail` was given."""
        self._first = first
        return self._wait(whole=False)

    def end(self) -> Coroutine[None, None, None]:
        """Await it: until the response is complete. Raises the same."""
        return self._wait(whole=True)

    async def _wait(self, whole: bool) -> None:
        self._whole = whole
        if whole:
            self.resume()
        reply = self.reply
        if self.failure is not None:
            raise self.failure
        if reply.complete or (reply.head_done and not whole and self._begun()):
            return
        if self.closed:
            raise Failure("reset", "the connection to the backend broke")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """The current response will not be completed; whoever waits for it gets `error`. Closes the connection."""
        if self.failure is None:
            self.failure = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.sink = None
        self.close()

    def pause(self) -> None:
        if not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def reusable(self) -> bool:
        reply = self.reply
        return reply.complete and reply.keep_alive and not reply.surplus and self.failure is None and not self.closed

    def release(self) -> None:
        """The exchange is done with it: back to the pool when the response ended cleanly, else closed at once."""
        self.sink = None
        if self.reusable and not self.transport.is_closing():
            self.busy = False
            self.resume()
            self._pool.give_back(self)
        else:
            self.close()

    def close(self) -> None:
        self.busy = False
        if not self.closed:
            self.transport.abort()
