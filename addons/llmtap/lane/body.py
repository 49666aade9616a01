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
    """Writes the pieces of one body. `tail` is the end of what was written, for the last words of a broken stream.
    `held`: bytes that go out with whatever is written next."""

    __slots__ = ("_framing", "_left", "_recent", "_transport", "held")

    def __init__(self, transport: asyncio.WriteTransport, framing: Framing, length: int = 0) -> None:
        self._transport = transport
        self._framing = framing
        self._left = length
        self._recent: deque[bytes] = deque(maxlen=_RECENT)
        self.held = b""

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
            self._put(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._put(self.encode(data))

    def end(self, last: bytes = b"", trailers: bytes = b"\r\n") -> bool:
        """The last piece, if there is one more, and the clean end. `trailers`: lines and the empty line. False when the
        connection has to close to show the end."""
        encoded = self.encode(last) if last else b""
        if self._framing is Framing.CHUNKED:
            self._put(b"%b0\r\n%b" % (encoded, trailers))
            return True
        self._put(encoded)
        return self._framing is Framing.EMPTY or (self._framing is Framing.LENGTH and self._left == 0)

    def flush(self) -> None:
        """Write what is held."""
        self._put(b"")

    def _put(self, data: bytes) -> None:
        if self.held:
            data, self.held = self.held + data, b""
        if data:
            self._transport.write(data)
