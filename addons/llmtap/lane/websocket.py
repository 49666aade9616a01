"""WebSockets without I/O: what a handshake needs, and one side's bytes → whole messages and control frames.

wsproto does the framing, as in mitmproxy. Extensions other than permessage-deflate are taken out of the client's offer, because
nobody here could read what they make of a frame. Sizes are bounded: a message that grows over the limit ends its connection
with 1009, and compressed input is looked at in slices, so that a bomb shows before it is inflated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import wsproto.extensions
from wsproto import ConnectionType, events
from wsproto.connection import Connection, ConnectionState
from wsproto.frame_protocol import CloseReason

from llmtap.lane.head import Field

#: what hop-by-hop treatment takes off a handshake, in either direction
HANDSHAKE = (b"connection: Upgrade", b"upgrade: websocket")
_DEFLATE = wsproto.extensions.PerMessageDeflate.name
_EXTENSIONS = b"sec-websocket-extensions"
#: inflates to 16 MiB at most
_SLICE = 16 << 10

GOING_AWAY = int(CloseReason.GOING_AWAY)
ABNORMAL = int(CloseReason.ABNORMAL_CLOSURE)
FAILED = int(CloseReason.INTERNAL_ERROR)
Control = events.Ping | events.Pong


def understood(fields: Iterable[Field]) -> tuple[Field, ...]:
    """The headers of a handshake, without the extensions that are not understood here."""
    kept = []
    for name, value in fields:
        if name.lower() == _EXTENSIONS:
            offers = [offer.strip() for offer in value.split(b",")]
            value = b", ".join(offer for offer in offers if _named(offer) == _DEFLATE.encode())
            if not value:
                continue
        kept.append((name, value))
    return tuple(kept)


def is_accepted(fields: Iterable[Field]) -> bool:
    """Whether a response 101 switches to the websocket protocol, and to nothing but what was offered."""
    upgrade = connection = False
    for name, value in fields:
        lower = name.lower()
        if lower == b"upgrade":
            upgrade = value.strip().lower() == b"websocket"
        elif lower == b"connection":
            connection = connection or b"upgrade" in (token.strip() for token in value.lower().split(b","))
        elif lower == b"transfer-encoding" or (lower == b"content-length" and value != b"0"):
            return False  # it would have a body
        elif lower == _EXTENSIONS and any(_named(offer.strip()) != _DEFLATE.encode() for offer in value.split(b",")):
            return False
    return upgrade and connection


def _named(extension: bytes) -> bytes:
    return extension.partition(b";")[0].strip()


@dataclass(slots=True)
class Message:
    """A whole message in the frames it came in (all `str`, or all `bytes`)."""

    frames: list[str | bytes]

    @property
    def is_text(self) -> bool:
        return isinstance(self.frames[0], str)

    @property
    def content(self) -> bytes:
        return b"".join(frame.encode() if isinstance(frame, str) else frame for frame in self.frames)


@dataclass(slots=True)
class Closing:
    """The side's last word. `clean`: a close frame; else it broke the protocol, and `code` is what it is told."""

    code: int
    reason: str | None
    clean: bool


class Codec:
    """One side of a websocket. `of_client`: the bytes come from the client, and we are its server.

    `extensions`: the header of the response to the handshake. Raises ValueError when its parameters are none.
    """

    def __init__(self, of_client: bool, extensions: str, limit: int) -> None:
        kind = ConnectionType.SERVER if of_client else ConnectionType.CLIENT
        self._ws = Connection(kind, [_deflate(extensions)] if extensions.strip() else [])
        self._limit = limit
        self._frames: list[str | bytes] = []
        self._pieces: list[str] = []
        self._raw: list[bytes] = []
        self._size = 0
        self._over = False

    # ---- what comes

    def feed(self, data: bytes) -> Iterator[Message | Control | Closing]:
        """What `data` completes. Nothing comes after a Closing."""
        for at in range(0, len(data), _SLICE):
            if self._over:
                return
            self._ws.receive_data(data[at : at + _SLICE])
            for event in self._ws.events():
                done: Message | Control | Closing | None = None
                if isinstance(event, events.TextMessage | events.BytesMessage):
                    done = self._piece(event)
                elif isinstance(event, events.CloseConnection):
                    # after bytes that are no websocket's wsproto stays open
                    clean = self._ws.state in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED)
                    done = Closing(event.code, event.reason, clean)
                elif isinstance(event, events.Ping | events.Pong):
                    done = event
                if done is not None:
                    self._over = isinstance(done, Closing)
                    yield done
                if self._over:
                    return

    def _piece(self, event: events.TextMessage | events.BytesMessage) -> Message | Closing | None:
        data = event.data
        self._size += len(data)
        if self._size > self._limit:
            return Closing(int(CloseReason.MESSAGE_TOO_BIG), f"a message is larger than {self._limit} bytes", False)
        if isinstance(data, str):
            self._pieces.append(data)
        else:
            self._raw.append(bytes(data))
        if not event.frame_finished and not event.message_finished:
            return None
        if isinstance(data, str):
            self._frames.append("".join(self._pieces))
        else:
            self._frames.append(b"".join(self._raw))
        self._pieces.clear()
        self._raw.clear()
        if not event.message_finished:
            return None
        whole = Message(self._frames)
        self._frames, self._size = [], 0
        return whole

    # ---- what goes

    def message(self, frames: Sequence[str | bytes]) -> bytes:
        """A message in these frames, as it goes to this side."""
        out = []
        for left, frame in zip(range(len(frames), 0, -1), frames, strict=True):
            event: events.Event
            if isinstance(frame, str):
                event = events.TextMessage(frame, message_finished=left == 1)
            else:
                event = events.BytesMessage(frame, message_finished=left == 1)
            out.append(self._ws.send(event))
        return b"".join(out)

    def control(self, event: Control) -> bytes:
        return bytes(self._ws.send(event))

    def close(self, code: int, reason: str | None) -> bytes:
        """The close frame, or the answer to one; nothing when this side has had it."""
        if self._ws.state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return b""
        if code == CloseReason.NO_STATUS_RCVD:
            return bytes(self._ws.send(events.CloseConnection(CloseReason.NO_STATUS_RCVD)))
        return bytes(self._ws.send(events.CloseConnection(code, reason or None)))


def _deflate(extensions: str) -> wsproto.extensions.Extension:
    made = wsproto.extensions.PerMessageDeflate()
    made.finalize(extensions)
    return made
