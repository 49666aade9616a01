"""The client's bytes → requests. llhttp (httptools) parses; here are the rules it leaves to us, and the bounds.

Refused, with the connection closed after the answer: targets that are not origin-form; a missing, repeated or impossible Host;
any transfer-encoding but one `chunked`, and any at all in HTTP/1.0; methods that no inference API has; heads and trailers over
the limits. llhttp itself refuses content-length next to transfer-encoding, repeated or odd lengths, bare line feeds, folded
headers, control characters and malformed chunks. The same bytes give the same requests however they are cut.

What follows the handshake of a websocket is no HTTP: it collects in `RequestParser.beyond`. Every other `Upgrade` is ignored, as
RFC 9110 7.8 allows (Java's HTTP client asks for h2c with every first request). httptools cannot ignore one, so the request goes
on in a second parser that is told its framing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools

from llmtap.core.errors import ApiError, BadRequest
from llmtap.lane.head import CONNECTION, HOP, HOST, LENGTH, PLAIN, TRANSFER, Field, HeaderKinds, is_target
from llmtap.lane.limits import LaneLimits
from llmtap.lane.refusals import HeadTooLarge, NotSupported

_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"))
_VERSIONS = {"1.1": b"HTTP/1.1", "1.0": b"HTTP/1.0"}
_HOST = re.compile(rb"(?:[0-9A-Za-z\-._~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")  # RFC 9112 3.2, RFC 9110 4.2.1
_NOT_HTTP = "the request is not valid HTTP"


class Inbound:
    """One request as it arrives. `fields`, `method` ... are set when the head is complete."""

    method = b""
    target = b""
    version = b"HTTP/1.1"
    keep_alive = False
    length: int | None = 0  # declared body size; None: chunked
    continue_expected = False
    upgrade = False  # to a websocket
    received = 0
    complete = False
    overflow = False  # more body than the limit
    lost = False  # and what came of it has been dropped
    sink: Callable[[bytes], None] | None = None  # who takes the body as it comes, without a limit
    refusal: ApiError | None = None  # not a request we serve
    changed: Callable[[], None] | None = None  # called when complete, too large or refused

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.trailers: list[Field] = []
        self.parts: list[bytes] = []

    @property
    def rest(self) -> int | None:
        """How much of the body is still to come; None when that is not known."""
        return None if self.length is None else self.length - self.received

    def body(self) -> bytes:
        """The whole body; gives up the pieces."""
        parts, self.parts = self.parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def refuse(self, error: ApiError) -> None:
        if self.refusal is None:
            self.refusal = error
            self.parts.clear()
            self._notify()

    def _notify(self) -> None:
        if self.changed is not None:
            self.changed()


class RequestParser:
    """Feed bytes; requests whose head is complete (or that are refused) are appended to `ready`. After a refusal nothing
    more is parsed: `dead`."""

    def __init__(self, limits: LaneLimits, kinds: HeaderKinds, ready: Callable[[Inbound], None]) -> None:
        self.limits = limits
        self._kinds = kinds
        self._ready = ready
        self._parser = httptools.HttpRequestParser(self)
        self._now: Inbound | None = None
        self._head_done = False
        self._begun = False  # a message began in this very feed
        self._unread = 0  # bytes fed since something came of them, but for those of the piece in which it came ...
        self._piece = self._slack = 0  # ... which is so large: head or trailers may be larger than `_unread` by that
        self._fields: list[Field] = []  # of the head, then of the trailers, now being read
        self._upgrade = False  # llhttp takes the rest to be another protocol
        self._websocket = False  # and so do we
        self._mute = False  # what llhttp says is not for us
        self.dead = False
        self.beyond = bytearray()  # what came behind a websocket's handshake

    @property
    def between(self) -> bool:
        """No request is half read."""
        return self._now is None

    @property
    def in_head(self) -> bool:
        return self._now is not None and not self._head_done

    def close(self) -> None:
        """The connection has ended. Lets go of llhttp, which knows this object: a cycle would wait for the collector."""
        self.dead = self._mute = True
        del self._parser, self._ready

    def feed(self, data: bytes) -> None:
        """Parse. Never raises; what is wrong becomes a refused `Inbound`."""
        if self.dead:
            return
        self._begun = False
        self._piece = len(data)
        self._unread += self._piece
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._websocket:
                self.dead = True
                self.beyond += data[upgrade.args[0] :]
            elif not self.dead:
                self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
            return
        if self._begun and self._now is not None and not self._head_done:
            self._progress()  # an unknown part of this piece belongs to the message before
        if self._unread > self.limits.max_head_bytes and self._now is not None:
            # a head, a trailer or a chunk extension without end
            self._refuse(self._too_large())

    def _refuse(self, error: ApiError) -> None:
        if self.dead:
            return
        self.dead = self._mute = True
        inbound = self._now if self._now is not None else Inbound()
        shown = self._now is not None and self._head_done
        inbound.keep_alive = False
        inbound.refuse(error)
        if not shown:
            self._ready(inbound)

    def _progress(self) -> None:
        self._unread = 0
        self._slack = self._piece

    def _oversized(self, fields: list[Field], size: int) -> ApiError | None:
        limits = self.limits
        if len(fields) > limits.max_headers:
            return HeadTooLarge(f"more than {limits.max_headers} headers")
        if (
            self._unread + self._slack > limits.max_head_bytes
            and size + sum(len(n) + len(v) + 4 for n, v in fields) > limits.max_head_bytes
        ):
            return self._too_large()
        return None

    def _too_large(self) -> ApiError:
        return HeadTooLarge(f"the request head is larger than {self.limits.max_head_bytes} bytes")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on behind the head of a request whose Upgrade is ignored: llhttp took it to have no body."""
        self._parser = httptools.HttpRequestParser(self)
        self._upgrade = False
        inbound = self._now
        if inbound is not None:  # else it had no body, and is complete
            framing = b"transfer-encoding: chunked" if inbound.length is None else b"content-length: %d" % inbound.length
            self._mute = True
            self._fields = []
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
            self._mute = False
            self._fields = inbound.trailers
        if rest:
            self.feed(rest)

    # ---- llhttp's callbacks; nothing here raises

    def on_message_begin(self) -> None:
        if self._mute:
            return
        inbound = self._now = Inbound()
        self._head_done = False
        self._fields = inbound.fields
        self._begun = True

    def on_url(self, url: bytes) -> None:
        if not self._mute and self._now is not None:
            self._now.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))  # judged when all are there; how many bytes may come until then is bounded

    def on_headers_complete(self) -> None:
        inbound = self._now
        if self._mute or inbound is None:
            return
        parser = self._parser
        inbound.method = parser.get_method()
        version = _VERSIONS.get(parser.get_http_version())
        if version is None:
            self._refuse(BadRequest("only HTTP/1.1 and HTTP/1.0 are understood here"))
            return
        inbound.version = version
        inbound.keep_alive = parser.should_keep_alive()
        limits = self.limits
        error = None
        if self._unread + self._slack > limits.max_head_bytes or len(inbound.fields) > limits.max_headers:
            error = self._oversized(inbound.fields, len(inbound.target))
        error = error or _judge(inbound, self._kinds)
        self._upgrade = parser.should_upgrade()
        if error is None and self._upgrade and _is_websocket(inbound):
            error = _judge_handshake(inbound)
            inbound.upgrade = self._websocket = error is None
            inbound.keep_alive = False  # whatever the answer
        if error is not None:
            self._refuse(error)
            return
        self._head_done = True
        self._fields = inbound.trailers
        self._progress()
        if inbound.length is not None and inbound.length > limits.max_body_bytes:
            inbound.overflow = True
        self._ready(inbound)

    def on_body(self, data: bytes) -> None:
        inbound = self._now
        if self._mute or inbound is None:
            return
        self._progress()
        inbound.received += len(data)
        if inbound.sink is not None:
            inbound.sink(data)
        elif inbound.lost:
            return
        elif inbound.received > self.limits.max_body_bytes:
            inbound.overflow = inbound.lost = True
            inbound.parts.clear()
            inbound._notify()
        else:
            inbound.parts.append(data)

    def on_message_complete(self) -> None:
        inbound = self._now
        if self._mute or inbound is None or (self._upgrade and inbound.rest != 0):
            return
        if inbound.trailers:
            error = self._oversized(inbound.trailers, 0)
            if error is not None:
                self._refuse(error)
                return
            inbound.trailers = [(name, value.rstrip(b" \t")) for name, value in inbound.trailers]
        self._now = None
        self._progress()
        inbound.complete = True
        inbound._notify()


def _judge(inbound: Inbound, kinds: HeaderKinds) -> ApiError | None:
    """What is wrong with a complete head, or None. Sets what the body will be."""
    if inbound.method not in _METHODS:
        return NotSupported("this method is not supported")
    if not is_target(inbound.target):
        return BadRequest("the request target must be a path")
    hosts = 0
    coding: bytes | None = None
    fields = inbound.fields
    for at, (name, value) in enumerate(fields):
        if value and value[-1] <= 32:  # white space at the end is not part of it
            value = value.rstrip(b" \t")
            fields[at] = (name, value)
        kind = kinds[name]
        if kind == PLAIN:
            continue
        if kind == HOST:
            hosts += 1
            if not _HOST.fullmatch(value):
                return BadRequest(_NOT_HTTP + ": its Host is none")
        elif kind == LENGTH:
            inbound.length = int(value)
        elif kind == TRANSFER:
            if coding is not None:
                return BadRequest(_NOT_HTTP + ": transfer-encoding twice")
            coding = value
        elif kind == CONNECTION and inbound.version == b"HTTP/1.0" and b"close" in value.lower():
            inbound.keep_alive = False  # llhttp lets keep-alive win
        elif kind == HOP and name.lower() == b"expect" and value.lower() == b"100-continue":
            inbound.continue_expected = True
    if hosts > 1 or (hosts == 0 and inbound.version == b"HTTP/1.1"):
        return BadRequest(_NOT_HTTP + ": it needs exactly one Host header")
    if coding is not None:
        if coding.lower() != b"chunked" or inbound.version != b"HTTP/1.1":
            return BadRequest(_NOT_HTTP + ": the only transfer-encoding is chunked")
        inbound.length = None
    return None


def _judge_handshake(inbound: Inbound) -> ApiError | None:
    versions = [value for name, value in inbound.fields if name.lower() == b"sec-websocket-version"]
    if inbound.method != b"GET" or inbound.version != b"HTTP/1.1" or inbound.length != 0 or versions != [b"13"]:
        return NotSupported("a websocket's handshake must be a GET without a body, version 13")
    return None


def _is_websocket(inbound: Inbound) -> bool:
    return any(n.lower() == b"upgrade" and b"websocket" in v.lower() for n, v in inbound.fields)


def _reason(error: httptools.HttpParserError) -> ApiError:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return NotSupported("this method is not supported")
    return BadRequest(f"{_NOT_HTTP}: {error}")
