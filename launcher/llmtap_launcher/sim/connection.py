"""The TCP connection behind a request, for what ASGI has no words for: resets, garbage, writing without a task switch.

A subclass of uvicorn's protocol (the server vLLM uses) puts it into the ASGI scope. Body chunks are written straight to the
transport, framed as uvicorn frames them: at 30,000 chunks a second the way through ASGI's `send` is what costs.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, MutableMapping
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_KEY = "llmtap.connection"


class Connection:
    """One client's connection. All methods are for the event loop's thread."""

    def __init__(self, protocol: SimProtocol, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_lost: set[Callable[[], None]] = set()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._lost.done()

    @property
    def blocked(self) -> bool:
        """Whether the client reads too slowly for more to be written now."""
        return self._protocol.flow.write_paused

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, as soon as the connection is gone; at once if it is."""
        if self.lost:
            callback()
        else:
            self._on_lost.add(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Takes a callback back."""
        self._on_lost.discard(callback)

    def connection_lost(self) -> None:
        """Called by the protocol."""
        if not self._lost.done():
            self._lost.set_result(None)
        callbacks, self._on_lost = self._on_lost, set()
        for callback in callbacks:
            callback()

    async def wait_lost(self, seconds: float = float("inf")) -> bool:
        """Waits for the connection to go, at most `seconds`; whether it went."""
        timeout = None if seconds == float("inf") else seconds
        await asyncio.wait((self._lost,), timeout=timeout)
        return self.lost

    def write_chunk(self, data: bytes) -> None:
        """One chunk of a chunked body; nothing if the connection is going down."""
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def write_raw(self, data: bytes) -> None:
        """Bytes as they are."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Ends the connection after what was written, whatever the response's framing promised."""
        self._transport.close()

    def reset(self) -> None:
        """Ends the connection with a TCP reset; what was not sent yet is lost."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            # lingering for zero seconds makes close(2) send RST instead of FIN
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def connection_of(scope: MutableMapping[str, Any]) -> Connection:
    """The connection of a request, from its ASGI scope."""
    return cast(Connection, scope[_KEY])


class SimProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the connection in each request's scope."""

    connection: Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.connection = Connection(self, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.connection.connection_lost()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[_KEY] = self.connection
