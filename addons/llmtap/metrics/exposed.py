"""What the gateway's endpoints tell of its metrics. Numbers are copied on the event loop, which takes a fraction of a
millisecond; text and JSON are made of the copy in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from llmtap.metrics import rendering
from llmtap.metrics.families import Families
from llmtap.metrics.upstream import CONTENT_TYPE, BackendMetrics
from llmtap.metrics.workers import Share
from llmtap.policy.backends import Backends


class Exposed:
    """`share`: this process is one of several, and answers for all."""

    def __init__(self, families: Families, backends: Backends, share: Share | None = None) -> None:
        self._families = families
        self._share = share
        self._backends = BackendMetrics(backends)
        self._facts: Callable[[], dict[str, Any]] = dict

    async def text(self, accept: str) -> tuple[str, bytes]:
        """Content type and body of `/metrics`, in the format the client asks for."""
        openmetrics = rendering.accepts_openmetrics(accept)
        dumped = await self._dump()
        body = await asyncio.to_thread(rendering.text, dumped, openmetrics, self._families.created)
        return rendering.OPENMETRICS if openmetrics else rendering.TEXT, body

    async def plain(self) -> dict[str, Any]:
        """Every metric as plain data, as `core.snapshot` describes it."""
        return await asyncio.to_thread(rendering.plain, await self._dump())

    async def backends(self) -> tuple[str, bytes]:
        """Content type and body of `/metrics/backends`."""
        return CONTENT_TYPE, await self._backends.page()

    def tell(self, facts: Callable[[], dict[str, Any]]) -> None:
        """What this process says of itself to whoever answers for all: plain data, asked on the event loop."""
        self._facts = facts
        if self._share is not None:
            self._share.facts = facts

    async def told(self) -> list[dict[str, Any]]:
        """What every process says of itself; this one first."""
        own = self._facts()
        return [own] if self._share is None else [own, *await asyncio.to_thread(self._share.others)]

    async def _dump(self) -> rendering.Dump:
        if self._share is None:
            return self._families.dump()
        return (await asyncio.to_thread(self._share.total)).dump()
