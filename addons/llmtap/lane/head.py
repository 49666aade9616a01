"""Heads on the wire: hop-by-hop headers dropped, framing set, everything else byte for byte in its order, case and number.

Nothing an addon puts into a header can end it early: a head with a line break or NUL too many raises `BadHead`, and so does
a name that is no token. Names are looked up, not lowered: a gateway sees the same few dozen all day.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

PLAIN: Final = 0
HOP: Final = 1
CONNECTION: Final = 2
LENGTH: Final = 3
TRANSFER: Final = 4
HOST: Final = 5

#: RFC 9110 7.6.1, and `expect`, which is between the client and us, and `proxy-*`, which a proxy consumes
_KINDS = {
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"transfer-encoding": TRANSFER,
    b"host": HOST,
    b"keep-alive": HOP,
    b"proxy-connection": HOP,
    b"proxy-authorization": HOP,
    b"proxy-authenticate": HOP,
    b"te": HOP,
    b"upgrade": HOP,
    b"expect": HOP,
}
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"/[\x21-\x22\x24-\x7e\x80-\xff]*")
_CACHED_NAMES = 2048

Field = tuple[bytes, bytes]


class BadHead(Exception):
    """A head that must not be sent: a header with a line break, NUL or an impossible name."""


class HeaderKinds(dict[bytes, int]):
    """Name as written → what it is to a proxy. Learns names, up to a bound. Raises BadHead for what is no token."""

    def __missing__(self, name: bytes) -> int:
        if not _TOKEN.fullmatch(name):
            raise BadHead(f"not a header name: {name[:80]!r}")
        kind = _KINDS.get(name.lower(), PLAIN)
        if len(self) < _CACHED_NAMES and len(name) <= 64:
            self[name] = kind
        return kind


def is_target(path: bytes) -> bool:
    """Whether a request target is origin-form and free of anything that could end the request line."""
    return _TARGET.fullmatch(path) is not None


def build(
    first: bytes,
    fields: Iterable[Field],
    kinds: HeaderKinds,
    *,
    length: int | None,
    chunked: bool = False,
    host: bytes = b"",
    replace: Sequence[Field] = (),
    extra: Sequence[bytes] = (),
) -> bytes:
    """A head from its first line to the empty line. Lines are given without their CRLF.

    `length`: the body's, put where the head has a content-length, else at the end; None: none. `chunked` likewise.
    `host` replaces Host where not empty; `replace` replaces headers of the same name; `extra` are whole lines.
    Raises BadHead.
    """
    out = [first]
    add = out.append
    drop = _names(replace) if replace else None
    hosted = chunk_written = False
    size = b"" if length is None or chunked else b"%d" % length
    for field in fields:
        name, value = field
        kind = kinds[name]
        if kind == PLAIN:
            if drop is None or name.lower() not in drop:
                add(b": ".join(field))
        elif kind == LENGTH:
            if size:
                add(b"%b: %b" % (name, size))
                size = b""
        elif kind == HOST:
            if not hosted:
                add(b"%b: %b" % (name, host or value))
            hosted = True
        elif kind == TRANSFER:
            if chunked and not chunk_written:
                add(b"%b: chunked" % name)
                chunk_written = True
        elif kind == CONNECTION and (named := _named(value)):
            drop = named if drop is None else drop | named
            out = [line for line in out if line.partition(b":")[0].lower() not in named]
            add = out.append
    if host and not hosted:
        out.insert(1, b"Host: " + host)
    if replace:
        out += [b": ".join(field) for field in replace]
    if chunked and not chunk_written:
        add(b"transfer-encoding: chunked")
    elif size:
        add(b"content-length: " + size)
    out += extra
    return _checked(out)


def trailer_lines(fields: Iterable[Field], kinds: HeaderKinds) -> bytes:
    """Trailers as they stand after the last chunk, without those that would change the framing. Raises BadHead."""
    lines = [b": ".join(field) for field in fields if kinds[field[0]] == PLAIN]
    return _checked(lines) if lines else b"\r\n"


def wants_close(fields: Iterable[Field]) -> bool:
    """Whether a Connection header says close."""
    return any(name.lower() == b"connection" and b"close" in value.lower() for name, value in fields)


def _checked(lines: list[bytes]) -> bytes:
    lines += (b"", b"")
    head = b"\r\n".join(lines)
    # as many of these as stand between the lines: one more anywhere is one too many
    if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * len(lines) - 2:
        raise BadHead("a header with a line break or NUL")
    return head


def _names(fields: Sequence[Field]) -> frozenset[bytes]:
    return frozenset(name.lower() for name, _ in fields)


def _named(value: bytes) -> frozenset[bytes]:
    """The headers a Connection header declares hop-by-hop; never those that frame or address the message."""
    value = value.lower()
    if value in (b"keep-alive", b"close"):
        return frozenset()
    names = {token.strip() for token in value.split(b",")}
    return frozenset(n for n in names if n and _KINDS.get(n, PLAIN) in (PLAIN, HOP) and n not in (b"close", b"keep-alive"))
