"""A request's body that is waited for until it is whole."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mitmproxy import http

from llmtap.core.errors import TooLarge
from llmtap.lane import mitm
from llmtap.lane.inbound import Inbound
from llmtap.lane.refusals import ClientGone

if TYPE_CHECKING:
    from llmtap.lane.client import ClientConnection


class Arrival:
    """Of one `Inbound`. `fail` ends the waiting, whoever's fault it is that there is nothing to wait for any more."""

    __slots__ = ("_client", "_inbound", "_waiter")

    def __init__(self, client: ClientConnection, inbound: Inbound) -> None:
        self._client = client
        self._inbound = inbound
        self._waiter: asyncio.Future[None] | None = None

    async def read(self, flow: http.HTTPFlow) -> None:
        """Wait for the body and put it into the flow. Raises the ApiError that refuses it, or what `fail` was given."""
        inbound = self._inbound
        if not inbound.complete and not inbound.overflow and inbound.refusal is None:
            if inbound.continue_expected:
                self._client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._wait()
        self.put(flow)

    def put(self, flow: http.HTTPFlow) -> None:
        """`read` for a body that is here already, or will never be. Raises the same."""
        inbound = self._inbound
        if inbound.refusal is not None:
            raise inbound.refusal
        if inbound.overflow:
            raise self.too_large()
        data = flow.request.data
        data.content = inbound.body()
        data.timestamp_end = time.time()
        if inbound.trailers:
            data.trailers = mitm.headers(tuple(inbound.trailers))

    async def swallow(self) -> bool:
        """Read and drop a small rest of a refused body, so that the connection stays usable. False: the client has left."""
        self._inbound.overflow = self._inbound.lost = True
        self._inbound.parts.clear()
        if self._inbound.refusal is None:
            try:
                await self._wait()
            except ClientGone:
                return False
        return True

    def too_large(self) -> TooLarge:
        return TooLarge(f"the request body is larger than {self._client.lane.limits.max_body_bytes} bytes")

    def fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    async def _wait(self) -> None:
        """Until the request is complete, too large or refused."""
        self._waiter = self._client.lane.loop.create_future()
        self._inbound.changed = self._changed
        self._client.expect_body(self._inbound)
        try:
            await self._waiter
        finally:
            self._waiter = self._inbound.changed = None

    def _changed(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
