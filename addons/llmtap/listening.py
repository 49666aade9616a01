"""What the gateway listens with beyond its mode: TLS out of two files, and the port that is open only while it is of use."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from llmtap.core.config import Server
from llmtap.core.errors import ConfigError

log = logging.getLogger("llmtap")
#: until a port that was taken is tried again
_AGAIN_S = 5.0
MakeTls = Callable[[str, str], ssl.SSLContext]


def read_tls(server: Server, make: MakeTls) -> ssl.SSLContext | None:
    """TLS as the configuration has it; None: plain HTTP. Raises ConfigError for files that do not serve."""
    if server.tls_cert is None:
        return None
    cert, key = server.tls_cert, server.tls_key or server.tls_cert
    held = _read("server.tls_cert", cert)
    if server.tls_key is not None:
        held = _read("server.tls_key", key)
    if b"ENCRYPTED" in held:
        raise ConfigError(f"server.tls_key: {key} is encrypted; give the key without a password")
    try:
        return make(str(cert), str(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"server.tls_key: {key} does not belong to the certificate in {cert}") from None
        raise ConfigError(f"server.tls_cert: {cert} and {key} are not a certificate and its key in PEM form") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"server.tls_cert: {error}") from None


def _read(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror or error}") from None


def try_address(host: str, port: int, reuse_port: bool = False) -> None:
    """Whether a listener could be opened there. Raises ConfigError. Port 0 always can. `reuse_port`: beside others that share."""
    if port == 0:
        return
    try:
        for family, kind, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            with socket.socket(family, kind, proto) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if reuse_port:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        raise ConfigError(f"server: cannot listen on {host}:{port}: {error.strerror or error}") from None


class Closable(Protocol):
    def close(self) -> None: ...


class CompatListener:
    """`server.compat_port`: `listen` opens it (raises OSError); `follow` says whether it is to be open now."""

    def __init__(self, host: str, port: int, listen: Callable[[str, int], Closable]) -> None:
        self.address = (host, port)
        self._listen = listen
        self._listener: Closable | None = None
        self._again: asyncio.TimerHandle | None = None
        self._told = False

    @property
    def is_open(self) -> bool:
        return self._listener is not None

    def follow(self, healthy: bool) -> None:
        """Call it whenever that may have changed, on the event loop."""
        self._forget()
        if not healthy:
            self.close()
        elif self._listener is None:
            try:
                self._listener = self._listen(*self.address)
            except OSError as error:
                if not self._told:
                    log.error("llmtap: server.compat_port: cannot listen on %s:%d: %s; trying on", *self.address, error.strerror)
                self._told = True
                self._again = asyncio.get_running_loop().call_later(_AGAIN_S, self.follow, True)
                return
            self._told = False
            log.info("llmtap: a backend is healthy: port %d is open", self.address[1])

    def close(self) -> None:
        """Connections that are open go on."""
        self._forget()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            log.info("llmtap: port %d is closed", self.address[1])

    def _forget(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
