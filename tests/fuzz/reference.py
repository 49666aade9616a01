"""HTTP/1.1 framing as RFC 9112 has it, written to be read against the RFC and not for speed. Shares nothing with the lane.

`requests(data)` and `response(data, ...)` say what the bytes are: whole messages, then how it ends. Where the RFC leaves a
recipient the choice between repairing and refusing (obs-fold, content-length next to transfer-encoding, repeated lengths, a
bare line feed as line end), this says `invalid`: two recipients that choose differently are how messages get smuggled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

End = Literal["boundary", "incomplete", "invalid", "closed"]
Fields = list[tuple[bytes, bytes]]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # field-content and white space, RFC 9110 5.5
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
# RTSP and ICE, and more than one space around the target: llhttp takes them and cannot be told otherwise. Framing is the same.
_VERSION = re.compile(rb"(?:HTTP|RTSP|ICE)/1\.[0-9]")
_FIRST = re.compile(rb"([^ ]+) +([^ ]+) +([^ ]+)")
_STATUS = re.compile(rb"(HTTP/1\.[0-9]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_REG_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+)"
_HOST = re.compile(rb"(?:" + _REG_NAME + rb"|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")  # RFC 9112 3.2: anything else must get 400
_LENGTH = re.compile(rb"[0-9]+")
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_WORD = _TOKEN.pattern[:-1] + rb"*"  # may be empty: laxer than the RFC, as everybody is, and framing does not hang on it
_EXTENSION = rb"[ \t]*;[ \t]*" + _WORD + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN.pattern + rb"|" + _QUOTED + rb")*)?"
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:" + _EXTENSION + rb")*")
_HUGE = 1 << 64  # what overflows; less is a large number, for limits to judge


class Invalid(Exception):
    """Not to be accepted by anybody who cares where messages end. `str()` says why."""


class Incomplete(Exception):
    """More bytes are needed."""


@dataclass
class Message:
    """`first`: (method, target, version) or (version, status, reason)."""

    first: tuple[bytes, bytes, bytes]
    fields: Fields
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    keep_alive: bool = True
    at: tuple[int, int, int] = (0, 0, 0)  # in the stream: where it begins, where its body begins, where it ends

    @property
    def key(self) -> tuple[bytes, bytes, bytes]:
        """(method, target, body): what is compared."""
        return self.first[0], self.first[1], self.body


@dataclass
class Stream:
    """Whole messages, then how the bytes end; `closed`: after a message that ends the connection, more bytes or not."""

    messages: list[Message]
    end: End
    why: str = ""
    rest: int = 0  # bytes after the last whole message

    @property
    def keys(self) -> list[tuple[bytes, bytes, bytes]]:
        return [m.key for m in self.messages]


def requests(data: bytes) -> Stream:
    """Everything a connection's bytes contain."""
    out = Stream([], "boundary")
    at = 0
    while True:
        while data[at : at + 1] in (b"\r", b"\n"):  # RFC 9112 2.2 lets empty lines before a request pass; here any
            at += 1
        out.rest = len(data) - at
        if at == len(data):
            return out
        try:
            message, at = _request(data, at)
        except Invalid as why:
            out.end, out.why = "invalid", str(why)
            return out
        except Incomplete:
            out.end = "incomplete"
            return out
        out.messages.append(message)
        if not message.keep_alive:
            out.end, out.rest = "closed", len(data) - at
            return out


def response(data: bytes, *, head_only: bool, eof: bool) -> Stream:
    """The final response at the start of `data` (interim ones before it are skipped). `eof`: the connection has ended."""
    at = 0
    try:
        while True:
            message, at, done = _response(data, at, head_only, eof)
            if done:
                return Stream([message], "boundary" if message.keep_alive else "closed", rest=len(data) - at)
    except Invalid as why:
        return Stream([], "invalid", str(why))
    except Incomplete:
        return Stream([], "incomplete")


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    """A line without its CRLF, and where the next begins."""
    end = data.find(b"\n", at)
    if end < 0:
        if b"\r" in data[at:-1]:
            raise Invalid("bare CR")
        raise Incomplete
    line = data[at:end]
    if not line.endswith(b"\r"):
        raise Invalid("bare LF")
    if b"\r" in line[:-1]:
        raise Invalid("bare CR")
    return line[:-1], end + 1


def _fields(data: bytes, at: int) -> tuple[Fields, int]:
    fields: Fields = []
    while True:
        line, at = _line(data, at)
        if not line:
            return fields, at
        if line[0] in b" \t":
            raise Invalid("obs-fold")
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise Invalid("field name")
        if not _VALUE.fullmatch(value):
            raise Invalid("control character in field value")
        fields.append((name, value.strip(b" \t")))


def _all(fields: Fields, name: bytes) -> list[bytes]:
    return [v for n, v in fields if n.lower() == name]


def _keeps_alive(version: bytes, fields: Fields) -> bool:
    options = {o.strip(b" \t").lower() for v in _all(fields, b"connection") for o in v.split(b",")}
    if b"close" in options:
        return False
    return not version.endswith(b"/1.0") or b"keep-alive" in options


def _declared(version: bytes, fields: Fields) -> int | Literal["chunked"] | None:
    """What the head says of the body: RFC 9112 6.3, ambiguity refused."""
    codings, lengths = _all(fields, b"transfer-encoding"), _all(fields, b"content-length")
    if codings:
        if lengths:
            raise Invalid("content-length and transfer-encoding")
        if version.endswith(b"/1.0"):
            raise Invalid("transfer-encoding in HTTP/1.0")
        if len(codings) > 1:
            raise Invalid("transfer-encoding twice")
        if codings[0].lower() != b"chunked":
            raise Invalid("transfer-encoding that is not chunked")
        return "chunked"
    if not lengths:
        return None
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Invalid("content-length")
    digits = lengths[0].lstrip(b"0") or b"0"
    if len(digits) > 20 or int(digits) >= _HUGE:
        raise Invalid("huge content-length")
    return int(digits)


def _sized(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    if len(data) - at < size:
        raise Incomplete
    return data[at : at + size], at + size


def _chunked(data: bytes, at: int, strict: bool) -> tuple[bytes, Fields, int]:
    body = b""
    while True:
        line, at = _line(data, at)
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise Invalid("chunk size or extension")
        digits = found[1].lstrip(b"0") or b"0"
        if len(digits) > 16 or int(digits, 16) >= _HUGE:
            raise Invalid("huge chunk")
        size = int(digits, 16)
        if size == 0:
            break
        piece, at = _sized(data, at, size)
        end = data[at : at + 2]
        if not b"\r\n".startswith(end):
            raise Invalid("chunk end")
        if len(end) < 2:
            raise Incomplete
        body += piece
        at += 2
    trailers, at = _fields(data, at)
    if strict and (_all(trailers, b"content-length") or _all(trailers, b"transfer-encoding")):
        raise Invalid("framing in trailers")
    return body, trailers, at


def _request(data: bytes, at: int) -> tuple[Message, int]:
    start = at
    line, at = _line(data, at)
    found = _FIRST.fullmatch(line)
    if found is None:
        raise Invalid("request line")
    method, target, version = found.groups()
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target) or not _VERSION.fullmatch(version):
        raise Invalid("request line")
    fields, at = _fields(data, at)
    hosts = len(_all(fields, b"host"))
    if any(not _HOST.fullmatch(host) for host in _all(fields, b"host")):
        raise Invalid("host")
    if hosts > 1 or (hosts == 0 and not version.endswith(b"/1.0")):
        raise Invalid("host")
    declared = _declared(version, fields)
    body_at = at
    trailers: Fields = []
    if declared == "chunked":
        body, trailers, at = _chunked(data, at, strict=True)
    else:
        body, at = _sized(data, at, declared or 0)
    return Message((method, target, version), fields, body, trailers, _keeps_alive(version, fields), (start, body_at, at)), at


def _response(data: bytes, at: int, head_only: bool, eof: bool) -> tuple[Message, int, bool]:
    while data[at : at + 1] in (b"\r", b"\n"):  # as before requests
        at += 1
    line, at = _line(data, at)
    found = _STATUS.fullmatch(line)
    if found is None:
        raise Invalid("status line")
    fields, at = _fields(data, at)
    message = Message((found[1], found[2], found[3] or b""), fields, keep_alive=_keeps_alive(found[1], fields))
    status = int(found[2])
    if status == 101:
        raise Invalid("switched protocols unasked")
    if status < 200:
        return message, at, False
    declared = _declared(found[1], fields)
    if head_only or status in (204, 304):
        return message, at, True
    if declared == "chunked":
        message.body, message.trailers, at = _chunked(data, at, strict=False)  # nobody acts on them
    elif declared is not None:
        message.body, at = _sized(data, at, declared)
    elif eof:
        message.body, at, message.keep_alive = data[at:], len(data), False
    else:
        raise Incomplete
    return message, at, True
