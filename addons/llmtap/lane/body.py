"""Framing of what goes to the client: one writer a response, which knows how its body ends on the wire.

CHUNKED   HTTP/1.1, length unknown: ends with the last chunk and its trailers
LENGTH    content-length was announced: never more than that, and less must end in a closed connection
CLOSE     HTTP/1.0, length unknown: ends with the connection
EMPTY     HEAD, 204, 304: no body whatever was announced
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum, auto

#: how many of the last pieces are kept, to see whether a broken stream had its own terminator
_RECENT = 4


class Framing(Enum):
    CHUNKED = auto()
    LENGTH = auto()
    CLOSE = auto()
    EMPTY = auto()


class BodyWriter:
    """Writes the pieces of one body. `tail` is the end of what was written, for the last words of a broken stream."""

    __slots__ = ("_framing", "_left", "_recent", "_transport")

    def __init__(self, transport: asyncio.WriteTransport, framing: Framing, length: int = 0) -> None:
        self._transport = transport
        self._framing = framing
        self._left = length
        self._recent: deque[bytes] = deque(maxlen=_RECENT)

    @property
    def tail(self) -> bytes:
        return b"".join(self._recent)

    @property
    def framing(self) -> Framing:
        return self._framing

    def encode(self, data: bytes) -> bytes:
        """A piece as it goes on the wire; for what is written together with the head."""
        self._recent.append(data)
        if self._framing is Framing.CHUNKED:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self._framing is Framing.LENGTH:
            data = data[: self._left] if len(data) > self._left else data
            self._left -= len(data)
            return data
        return data if self._framing is Framing.CLOSE else b""

    def write(self, data: bytes) -> None:
        """One piece; an empty one is nothing (an empty chunk would end the body)."""
        if not data:
            return
        if self._framing is Framing.CHUNKED:  # nearly always
            self._recent.append(data)
            # never writelines: asyncio before 3.13.2 does not pause its protocol there (CVE-2024-12254)
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif (encoded := self.encode(data)) != b"":
            self._transport.write(encoded)

    def end(self, trailers: bytes = b"\r\n") -> bool:
        """The clean end. `trailers`: lines and the empty line. False when the connection has to close to show the end."""
        if self._framing is Framing.CHUNKED:
            self._transport.write(b"0\r\n" + trailers)
            return True
        return self._framing is Framing.EMPTY or (self._framing is Framing.LENGTH and self._left == 0)
