"""A websocket peer on wsproto, client or backend: `Socket` over a connection whose handshake is done."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable
from typing import Any

from wsproto import ConnectionType, events
from wsproto.connection import Connection
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from support.lane import PATIENCE_S, Peer

DEFLATE = "permessage-deflate"
LOST = events.CloseConnection(CloseReason.ABNORMAL_CLOSURE)


class Socket:
    """Sends and receives wsproto events. `reply_to_pings`: answer them, and do not show them."""

    def __init__(self, peer: Peer, client: bool, extension: str = "") -> None:
        self.peer = peer
        extensions = []
        if extension:
            made = PerMessageDeflate()
            made.finalize(extension)
            extensions.append(made)
        self.ws = Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER, extensions)
        self._events = self.ws.events()

    def send(self, *sent: events.Event) -> None:
        for event in sent:
            self.peer.send(bytes(self.ws.send(event)))

    def text(self, *frames: str) -> None:
        """One message in these frames."""
        self.send(*(events.TextMessage(f, message_finished=i == len(frames)) for i, f in enumerate(frames, 1)))

    def binary(self, *frames: bytes) -> None:
        self.send(*(events.BytesMessage(f, message_finished=i == len(frames)) for i, f in enumerate(frames, 1)))

    def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.send(events.CloseConnection(code, reason))

    async def event(self) -> events.Event:
        """The next event; `LOST` for the end of the connection."""
        while True:
            for event in self._events:
                return event
            try:
                data = await asyncio.wait_for(self.peer.reader.read(65536), PATIENCE_S)
            except ConnectionError:
                data = b""
            if not data:
                return LOST
            self.ws.receive_data(data)
            self._events = self.ws.events()

    async def frames(self) -> list[Any]:
        """The next message, frame by frame."""
        out: list[Any] = []
        pieces: list[Any] = []
        while True:
            event = await self.event()
            assert isinstance(event, events.TextMessage | events.BytesMessage), event
            pieces.append(event.data if isinstance(event.data, str) else bytes(event.data))
            if event.frame_finished or event.message_finished:
                out.append(pieces[0][:0].join(pieces))
                pieces = []
            if event.message_finished:
                return out

    async def message(self) -> Any:
        frames = await self.frames()
        return frames[0][:0].join(frames)

    async def closed(self) -> tuple[int, str | None]:
        """(code, reason) of the close frame that comes next, then the end of the connection after our answer to it."""
        event = await self.event()
        assert isinstance(event, events.CloseConnection), event
        if event is not LOST and self.ws.state.name == "REMOTE_CLOSING":
            self.send(event.response())
        if event is not LOST:
            assert await self.peer.rest() == b""
        return event.code, event.reason


def handshake(path: str = "/v1/realtime", extension: str = "", more: str = "") -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    offered = f"Sec-WebSocket-Extensions: {extension}\r\n" if extension else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{offered}{more}\r\n"
    ).encode()


def header(head: bytes, name: str) -> str:
    """The header of a head, or an empty string."""
    for line in head.decode("latin-1").split("\r\n"):
        if line.partition(":")[0].lower() == name:
            return line.partition(":")[2].strip()
    return ""


async def open_socket(peer: Peer, request: bytes | None = None, extension: str = "") -> Socket:
    """As a client: the whole handshake, checked."""
    request = request or handshake(extension=extension)
    peer.send(request)
    head = await peer.head()
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert header(head, "upgrade") == "websocket" and header(head, "connection").lower() == "upgrade", head
    token = generate_accept_token(header(request, "sec-websocket-key").encode())
    assert header(head, "sec-websocket-accept").encode() == (token if isinstance(token, bytes) else token.encode())
    return Socket(peer, True, header(head, "sec-websocket-extensions"))


async def accept(peer: Peer, more: str = "") -> tuple[bytes, Socket]:
    """As a backend: take the next handshake, with permessage-deflate where it is offered. (head of the request, socket)"""
    head = await peer.head()
    assert header(head, "upgrade") == "websocket" and "upgrade" in header(head, "connection").lower(), head
    token = generate_accept_token(header(head, "sec-websocket-key").encode())
    accepted = token.decode() if isinstance(token, bytes) else token
    extension = DEFLATE if DEFLATE in header(head, "sec-websocket-extensions") else ""
    chosen = f"Sec-WebSocket-Extensions: {extension}\r\n" if extension else ""
    peer.send(
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accepted}\r\n{chosen}{more}\r\n".encode()
    )
    return head, Socket(peer, False, extension)


def serving(script: Callable[[Socket], Awaitable[None]]) -> Callable[[Peer], Awaitable[None]]:
    """A `FakeUpstream` script out of what is to happen on the socket."""

    async def run(peer: Peer) -> None:
        _, socket = await accept(peer)
        await script(socket)

    return run


async def echo(socket: Socket) -> None:
    """Every message back as it came, frame by frame; pings answered; a close answered."""
    frames: list[Any] = []
    pieces: list[Any] = []
    while True:
        event = await socket.event()
        match event:
            case events.TextMessage() | events.BytesMessage():
                pieces.append(event.data if isinstance(event.data, str) else bytes(event.data))
                if event.frame_finished or event.message_finished:
                    frames.append(pieces[0][:0].join(pieces))
                    pieces = []
                if event.message_finished:
                    (socket.text if isinstance(frames[0], str) else socket.binary)(*frames)
                    frames = []
                    await socket.peer.flush()
            case events.Ping():
                socket.send(event.response())
            case events.CloseConnection():
                if event is not LOST:
                    socket.send(event.response())
                return
