"""Accepting connections: an own loop over a listening socket.

uvloop accepts one connection per turn of the loop, so a burst of clients would wait as many turns; here a turn takes up to
256. Out of file descriptors means waiting a moment, not spinning.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

log = logging.getLogger("llmtap.lane")
_BURST = 256
_BACKLOG = 4096


def bind(host: str, port: int, reuse_port: bool = False) -> list[socket.socket]:
    """Listening sockets for an address: every one a name has; both families for an empty host. Port 0: any free one, the same
    for all. Raises OSError."""
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        if socket.has_dualstack_ipv6():
            return [_socket(socket.AF_INET6, ("::", port), reuse_port, dual=True)]
        return [_socket(socket.AF_INET, ("0.0.0.0", port), reuse_port)]
    sockets: list[socket.socket] = []
    seen = set()
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            if address in seen:
                continue
            seen.add(address)
            if sockets:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sockets.append(_socket(family, address, reuse_port))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _socket(family: int, address: tuple[Any, ...], reuse_port: bool, dual: bool = False) -> socket.socket:
    sock = socket.create_server(address, family=family, backlog=_BACKLOG, reuse_port=reuse_port, dualstack_ipv6=dual)
    sock.setblocking(False)
    return sock


class Listener:
    """Accepts on `sockets` until `close`. `full()` says that one more connection is too many: it gets `refusal` and is closed."""

    def __init__(
        self,
        sockets: list[socket.socket],
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        tls: ssl.SSLContext | None = None,
        full: Callable[[], bool] = lambda: False,
        refusal: bytes = b"",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._factory = factory
        self.tls = tls  # may be changed: for connections from then on
        self.shared = False  # and is, together with the lane's
        self._full = full
        self._refusal = refusal
        self._tasks: set[asyncio.Task[Any]] = set()
        self._resting: dict[socket.socket, asyncio.TimerHandle] = {}
        self.addresses: tuple[tuple[str, int], ...] = tuple(sock.getsockname()[:2] for sock in sockets)
        for sock in sockets:
            self._loop.add_reader(sock, self._accept, sock)

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    @property
    def closed(self) -> bool:
        return not self._sockets

    def close(self) -> None:
        """No more connections; those accepted go on."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        for handle in self._resting.values():
            handle.cancel()
        self._sockets = []
        self._resting.clear()

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                accepted, _address = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("cannot accept connections: %s", error)
                self._loop.remove_reader(sock)
                self._resting[sock] = self._loop.call_later(1.0, self._resume, sock)
                return
            accepted.setblocking(False)
            if self._full():
                self._turn_away(accepted)
                continue
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._open(accepted))
            if not task.done():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _resume(self, sock: socket.socket) -> None:
        del self._resting[sock]
        self._loop.add_reader(sock, self._accept, sock)

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._factory, accepted, ssl=self.tls, ssl_handshake_timeout=10.0 if self.tls else None
            )
        except (OSError, asyncio.CancelledError) as error:  # a TLS handshake that failed, or the end of the process
            accepted.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            log.info("connection not opened: %s", error)

    def _turn_away(self, accepted: socket.socket) -> None:
        try:
            if self._refusal and self.tls is None:
                accepted.send(self._refusal)
        except OSError:
            log.debug("a client over the limit was gone before it could be told")
        finally:
            accepted.close()


def server_tls(cert: str, key: str) -> ssl.SSLContext:
    """TLS for clients, HTTP/1.1 only. Raises OSError or ssl.SSLError for files that do not serve."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # an empty password: else OpenSSL asks the terminal for that of an encrypted key
    context.load_cert_chain(cert, key, password="")
    context.set_alpn_protocols(["http/1.1"])
    return context
