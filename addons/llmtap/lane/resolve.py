"""Names → addresses, remembered for a while: a look-up a connection would go through a thread each time."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class Resolver:
    """`addresses` in the system's order of preference. Literal addresses are never looked up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ttl_s: float) -> None:
        self._loop = loop
        self._known: dict[tuple[str, int], tuple[float, list[Address]]] = {}
        self.ttl_s = ttl_s

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Raises OSError (`socket.gaierror`) when the name has none."""
        literal = _literal(host, port)
        if literal is not None:
            return [literal]
        known = self._known.get((host, port))
        if known is not None and self._loop.time() < known[0]:
            return known[1]
        infos = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = [(socket.AddressFamily(family), address) for family, _, _, _, address in infos]
        self._known[host, port] = (self._loop.time() + self.ttl_s, found)
        return found

    def forget(self, host: str, port: int) -> None:
        """None of its addresses could be reached: look it up anew the next time."""
        self._known.pop((host, port), None)


def _literal(host: str, port: int) -> Address | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return (family, (host, port) if family == socket.AF_INET else (host, port, 0, 0))
    return None
