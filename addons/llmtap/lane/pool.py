"""The connections to all backends, shared by all clients: the last one used is the first one reused.

An idle connection is dropped before the backend would (vLLM's uvicorn: after 5 s). Hooks `server_connect`, `server_connected`,
`server_connect_error` and `server_disconnected` fire as in mitmproxy, with the client for whom the connection was opened.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from llmtap.core.plan import Target
from llmtap.lane.head import HeaderKinds
from llmtap.lane.limits import LaneLimits
from llmtap.lane.resolve import Resolver
from llmtap.lane.upstream import Failure, Upstream

Key = tuple[str, int, bool, str | None]
Fire = Callable[[str, Any], Awaitable[None] | None]


class Pool:
    """Idle connections by backend address. `tls` makes the context for TLS backends, when the first one is met."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: LaneLimits,
        kinds: HeaderKinds,
        fire: Fire,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self.kinds = kinds
        self._loop = loop
        self._fire = fire
        self._make_tls = tls or ssl.create_default_context
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[Key, list[Upstream]] = {}
        self._open: set[Upstream] = set()
        self._hooks: set[asyncio.Future[None]] = set()
        self._resolver = Resolver(loop, limits.dns_ttl_s)
        self.limit(limits)

    def limit(self, limits: LaneLimits) -> None:
        self._limits = limits
        self.high_water = limits.high_water
        self._resolver.ttl_s = limits.dns_ttl_s

    @staticmethod
    def key(target: Target) -> Key:
        return (target.host, target.port, target.tls, target.uds)

    @property
    def open_count(self) -> int:
        return len(self._open)

    @property
    def idle_count(self) -> int:
        return sum(len(idle) for idle in self._idle.values())

    def take(self, target: Target) -> Upstream | None:
        """An idle connection that is still good, or None."""
        idle = self._idle.get(self.key(target))
        while idle:
            upstream = idle.pop()
            if upstream.closed or upstream.transport.is_closing():
                continue
            if self._loop.time() - upstream.idle_since > self._limits.pool_idle_s:
                upstream.close()
                continue
            return upstream
        return None

    def give_back(self, upstream: Upstream) -> None:
        idle = self._idle.get(upstream.key)
        if idle is None:
            idle = self._idle[upstream.key] = []
        if len(idle) >= self._limits.pool_size:
            upstream.close()
            return
        upstream.idle_since = self._loop.time()
        idle.append(upstream)

    def lost(self, upstream: Upstream) -> None:
        """Its transport is gone. Counts once."""
        idle = self._idle.get(upstream.key)
        if idle and upstream in idle:
            idle.remove(upstream)
        if upstream in self._open:
            self._open.discard(upstream)
            self._later("server_disconnected", ServerConnectionHookData(upstream.server, upstream.client))

    async def connect(self, target: Target, client: Client, timeout_s: float) -> Upstream:
        """A new connection, its hooks fired. Raises Failure: refused, connect_timeout or protocol (TLS)."""
        server = Server(address=(target.uds, 0) if target.uds else (target.host, target.port), tls=target.tls)
        data = ServerConnectionHookData(server, client)
        await self._now("server_connect", data)
        if server.error:
            await self._now("server_connect_error", data)
            raise Failure("refused", "the connection to the backend was not allowed")
        server.timestamp_start = time.time()
        try:
            async with asyncio.timeout(timeout_s if timeout_s > 0 else None):
                upstream = await self._dial(target, server, client)
        except TimeoutError:
            raise await self._failed(
                data, Failure("connect_timeout", "the backend did not accept the connection in time")
            ) from None
        except ssl.SSLError:
            raise await self._failed(data, Failure("protocol", "the TLS handshake with the backend failed")) from None
        except OSError:
            self._resolver.forget(target.host, target.port)
            raise await self._failed(data, Failure("refused", "the backend refused the connection")) from None
        except asyncio.CancelledError:
            server.error = "connection cancelled"
            await self._now("server_connect_error", data)
            raise
        self._open.add(upstream)
        await self._now("server_connected", data)
        if upstream.closed:  # before anybody could be told
            self.lost(upstream)
        return upstream

    async def _failed(self, data: ServerConnectionHookData, failure: Failure) -> Failure:
        data.server.error = str(failure)
        await self._now("server_connect_error", data)
        return failure

    async def _dial(self, target: Target, server: Server, client: Client) -> Upstream:
        if target.uds is not None:
            sock = await self._connected(socket.AF_UNIX, target.uds, None)
        else:
            sock = await self._first(await self._resolver.addresses(target.host, target.port), server)
        context = None
        if target.tls:
            context = self._tls = self._tls or self._make_tls()
        server.timestamp_tcp_setup = time.time()
        try:
            transport, upstream = await self._loop.create_connection(
                lambda: Upstream(self, target, server, client),
                sock=sock,
                ssl=context,
                server_hostname=target.host if context is not None else None,
            )
        except BaseException:
            sock.close()
            raise
        if context is not None:
            server.timestamp_tls_setup = time.time()
        if target.uds is None:
            server.peername = transport.get_extra_info("peername")
            server.sockname = transport.get_extra_info("sockname")
        server.state = ConnectionState.OPEN
        return upstream

    async def _first(self, addresses: list[tuple[socket.AddressFamily, tuple[Any, ...]]], server: Server) -> socket.socket:
        """The first address that takes the connection; raises the last OSError."""
        failed: OSError = OSError("no address")
        for family, address in addresses:
            try:
                return await self._connected(family, address, server.sockname)
            except OSError as error:
                failed = error
        raise failed

    async def _connected(self, family: socket.AddressFamily, address: Any, local: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if local is not None:
                sock.bind(local)
            await self._loop.sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _now(self, hook: str, data: ServerConnectionHookData) -> None:
        waiting = self._fire(hook, data)
        if waiting is not None:
            await waiting

    def _later(self, hook: str, data: ServerConnectionHookData) -> None:
        waiting = self._fire(hook, data)
        if waiting is not None:
            task = asyncio.ensure_future(waiting)
            self._hooks.add(task)
            task.add_done_callback(self._hooks.discard)

    def sweep(self, now: float) -> None:
        """Drop what has been idle too long."""
        for key, idle in list(self._idle.items()):
            while idle and now - idle[0].idle_since > self._limits.pool_idle_s:
                idle.pop(0).close()
            if not idle:
                del self._idle[key]

    def close(self) -> None:
        """Every connection, at once."""
        for upstream in list(self._open):
            upstream.close()
        self._idle.clear()
