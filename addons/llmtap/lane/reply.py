"""A backend's bytes → one response: head, body pieces, trailers, end. No I/O.

Interim responses (100, 103) are swallowed. Bytes after the end never become part of anything: they make the connection
unfit for another request. A response without length ends with the connection (`until_close`).
"""

from __future__ import annotations

import re
from typing import Any

import httptools

from llmtap.lane.head import CONNECTION, LENGTH, TRANSFER, BadHead, Field, HeaderKinds
from llmtap.lane.websocket import is_accepted

_MAX_HEAD = 256 << 10
_MAX_FIELDS = 400
_MAX_INTERIM = 32
_MAX_DIGITS = 40  # llhttp skips zeros without end; Python's int() does not
_REASON = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class ReplyParser:
    """`expect` before every request; then `feed`. `error` says what was wrong with the bytes."""

    def __init__(self, kinds: HeaderKinds) -> None:
        self._kinds = kinds
        self.parts: list[bytes] = []
        self.on_body = self.parts.append  # llhttp hands body pieces straight to the list
        self._parser: httptools.HttpResponseParser | _Beyond | _Gone = httptools.HttpResponseParser(self)
        self.expect(head_only=False)

    switched = False  # to a websocket: `beyond` is what came behind the head, and this connection never carries HTTP again
    beyond = b""

    def expect(self, head_only: bool, upgrade: bool = False) -> None:
        """Make ready for the response to the next request; `head_only` when that is HEAD, `upgrade` a websocket's handshake."""
        self.status = 0
        self.reason = b""
        self.version = b"HTTP/1.1"
        self.fields: list[Field] = []
        self.trailers: list[Field] = []
        self.parts.clear()
        self._end = 0  # how many of them the response has, once it is complete
        self.head_done = self.complete = self.keep_alive = self.until_close = self.surplus = False
        self.error: str | None = None
        self._into = self.fields  # where headers go: the head's, the trailers', or nowhere
        self._head_only = head_only
        self._upgrade = upgrade
        self._silent = 0  # bytes since something came of them
        self._interim = 0
        self._in_interim = False

    def feed(self, data: bytes) -> None:
        """Parse. Never raises; see `error` (fatal) and `surplus` (response fine, connection not)."""
        self._silent += len(data)
        parts = self.parts
        before = len(parts)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.switched:
                self._parser = _Beyond(self)
                self._parser.feed_data(data[upgrade.args[0] :])
            else:
                self._wrong("it switched protocols unasked")
        except httptools.HttpParserError as error:
            self._wrong(str(error))
        if len(parts) > before:
            self._silent = 0
            if self.complete and len(parts) > self._end:
                self.surplus = True
                del parts[self._end :]
        if self._silent > _MAX_HEAD and not self.complete:
            self._wrong("its head or trailers are too large")

    def closed(self) -> bool:
        """The connection has ended. True when that completes the response."""
        self._parser = _GONE  # llhttp knows this object: a cycle would wait for the collector
        if self.head_done and not self.complete and self.until_close and self.error is None:
            self.complete = True
        return self.complete

    def take(self) -> bytes:
        """The body so far; gives it up."""
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._end = 0
        return data

    @property
    def buffered(self) -> int:
        """Bytes of the body that nobody has taken."""
        return sum(map(len, self.parts))

    def _wrong(self, what: str) -> None:
        if self.complete:
            self.surplus = True
        elif self.error is None:
            self.error = what

    # ---- llhttp's callbacks

    def on_message_begin(self) -> None:
        if self.complete:
            self.surplus = True
            self._into = []

    def on_status(self, reason: bytes) -> None:
        if not self.complete:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._into.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        parser: Any = self._parser
        status = parser.get_status_code()
        if not _REASON.fullmatch(self.reason):
            self._wrong("a control character in its status line")
            return
        if status == 101 and self._upgrade:
            if self._framed() and is_accepted(self.fields):
                self.status = status
                self.keep_alive = False
                self.switched = self.head_done = True
            else:
                self._wrong("its websocket handshake is not understood")
            return
        if 100 <= status < 200:
            self._in_interim = True
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                self._wrong("too many interim responses")
            return
        version = parser.get_http_version()
        if version not in ("1.1", "1.0") or not 200 <= status <= 999:
            self._wrong("it is not an HTTP/1 response")
            return
        self.version = b"HTTP/1.1" if version == "1.1" else b"HTTP/1.0"
        self.status = status
        self.keep_alive = parser.should_keep_alive()
        if not self._framed():
            return
        self.head_done = True
        self._silent = 0
        self._into = self.trailers
        if self._head_only:
            self.complete = True
            self._into = []
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for a body

    def _framed(self) -> bool:
        """Look the headers over: where the body ends, white space that is not part of a value. False when they are wrong."""
        fields = self.fields
        if len(fields) > _MAX_FIELDS:
            self._wrong("it has too many headers")
            return False
        sized = chunked = False
        for at, (name, value) in enumerate(fields):
            if value and value[-1] <= 32:
                value = value.rstrip(b" \t")
                fields[at] = (name, value)
            try:
                kind = self._kinds[name]
            except BadHead:  # llhttp is laxer with names than HTTP
                self._wrong("a header name is none")
                return False
            if kind == LENGTH:
                if len(value) > _MAX_DIGITS:
                    self._wrong("its content-length is absurd")
                    return False
                sized = True
            elif kind == CONNECTION and self.version == b"HTTP/1.0" and b"close" in value.lower():
                self.keep_alive = False  # llhttp lets keep-alive win
            elif kind == TRANSFER:
                if chunked or value.lower() != b"chunked" or self.version != b"HTTP/1.1":
                    self._wrong("its transfer-encoding is not chunked")
                    return False
                chunked = True
        if chunked and self._head_only:
            self.keep_alive = False  # whether a body follows against the rules would not be seen
        self.until_close = not (sized or chunked or self.keep_alive)
        return True

    def on_message_complete(self) -> None:
        if self._in_interim:
            self._in_interim = False
            self.reason = b""
            self.fields.clear()
        elif self.head_done and not self.complete:
            self.complete = True
            self._end = len(self.parts)
            self._into = []
            if len(self.trailers) > _MAX_FIELDS:
                self.trailers.clear()


class _Beyond:
    """Takes the place of the parser once the protocol has been switched."""

    def __init__(self, reply: ReplyParser) -> None:
        self._reply = reply

    def feed_data(self, data: bytes) -> None:
        self._reply.beyond += data


class _Gone:
    """Takes the place of the parser once the connection has ended."""

    def feed_data(self, data: bytes) -> None:
        pass


_GONE = _Gone()
