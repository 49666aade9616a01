"""A response on its way to the client: its head, how its body is framed, and whether the connection goes on after it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mitmproxy import http

from llmtap.core.errors import InternalError
from llmtap.lane.body import BodyWriter, Framing
from llmtap.lane.head import BadHead, build, trailer_lines
from llmtap.lane.inbound import Inbound
from llmtap.lane.websocket import HANDSHAKE

if TYPE_CHECKING:
    from llmtap.lane.client import ClientConnection

log = logging.getLogger("llmtap.lane")


class ResponseWriter:
    """Of one exchange: `send_whole`, or `begin` and `finish` with the body's pieces between them.

    `keep`: the connection can be used again. `sent`: a whole response has been written.
    """

    __slots__ = ("_client", "_inbound", "keep", "sent")

    def __init__(self, client: ClientConnection, inbound: Inbound) -> None:
        self._client = client
        self._inbound = inbound
        self.keep = inbound.keep_alive
        self.sent = False

    def begin(self, response: http.Response, first: bytes, *, hold: bool = False, at_once: bool = True) -> BodyWriter:
        """The head and the first piece of a body whose length is not known in advance; `hold`: they go out with what is
        written next; `at_once`: see `ClientConnection.write_at_once`. Raises InternalError."""
        self._decide_keep()
        data = response.data
        declared = declared_length(data.headers)
        if self._empty(data.status_code):
            framing = Framing.EMPTY
        elif declared is not None:
            framing = Framing.LENGTH
        elif self._inbound.version == b"HTTP/1.1":
            framing = Framing.CHUNKED
        else:
            framing = Framing.CLOSE
            self.keep = False
        head = self._head(data, None if data.status_code == 204 else declared, framing is Framing.CHUNKED)
        writer = BodyWriter(self._client.transport, framing, declared or 0)
        writer.held = head + writer.encode(first) if first else head
        if not hold:
            if at_once:
                self._client.write_at_once(True)
            writer.flush()
        return writer

    def finish(self, writer: BodyWriter, tail: bytes, trailers: http.Headers | None) -> None:
        """The last piece and the clean end."""
        self._client.write_at_once(False)
        lines = b"\r\n"
        if trailers is not None:
            try:
                lines = trailer_lines(trailers.fields, self._client.lane.kinds)
            except BadHead as error:
                log.error("trailers not sent: %s", error)
        if not writer.end(tail, lines):
            self.keep = False

    def send_whole(self, response: http.Response) -> None:
        """A response that is here to its end. Raises InternalError when its head cannot be sent; nothing has been then."""
        self._decide_keep()
        data = response.data
        body = data.content or b""
        transport = self._client.transport
        if data.trailers is not None and self._inbound.version == b"HTTP/1.1" and not self._empty(data.status_code):
            head = self._head(data, None, chunked=True)
            self.sent = True
            writer = BodyWriter(transport, Framing.CHUNKED)
            writer.held = head
            self.finish(writer, body, data.trailers)
            return
        if self._empty(data.status_code):
            body = b""
            head = self._head(data, None if data.status_code == 204 else declared_length(data.headers), chunked=False)
        else:
            head = self._head(data, len(body), chunked=False)
        self.sent = True
        if len(body) > 65536:  # two calls cost less than a copy
            transport.write(head)
            transport.write(body)
        else:
            transport.write(head + body if body else head)

    def switching(self, response: http.Response) -> bytes:
        """The head of a 101 that makes the connection a websocket, which it stays. Raises InternalError."""
        self.keep = False
        return self._head(response.data, None, chunked=False, extra=HANDSHAKE)

    def _empty(self, status: int) -> bool:
        return self._inbound.method == b"HEAD" or status in (204, 304)

    def _decide_keep(self) -> None:
        """Whether the connection goes on; known before the head is written, because the head says so."""
        inbound, limits = self._inbound, self._client.lane.limits
        if self._client.closing:
            self.keep = False
        elif not inbound.complete:
            rest = inbound.rest
            small = rest is not None and rest <= limits.drain_rest_bytes and not inbound.continue_expected
            self.keep = self.keep and small and inbound.refusal is None

    def _head(self, data: http.ResponseData, length: int | None, chunked: bool, extra: tuple[bytes, ...] | None = None) -> bytes:
        if extra is not None:
            pass
        elif not self.keep:
            extra = (b"connection: close",)
        else:
            extra = () if self._inbound.version == b"HTTP/1.1" else (b"connection: keep-alive",)
        first = b"HTTP/1.1 %d %b" % (data.status_code, data.reason)
        try:
            return build(first, data.headers.fields, self._client.lane.kinds, length=length, chunked=chunked, extra=extra)
        except BadHead as error:
            log.error("response not sent: %s", error)
            raise InternalError("internal error; the response's headers were made unusable") from None


def declared_length(headers: http.Headers) -> int | None:
    """The content-length a response's head announces, when it can be believed."""
    length: int | None = None
    for name, value in headers.fields:
        size = len(name)
        if size == 14 and name.lower() == b"content-length":
            length = int(value) if value.isdigit() else None
        elif size == 17 and name.lower() == b"transfer-encoding":
            return None
    return length
