"""Typed netstrings, the format of mitmproxy's flow files: `<length>:<data><type>`, one value after the other.

Types: `,` bytes, `;` text, `#` integer, `^` float, `!` boolean, `~` null, `]` list, `}` dictionary. Written from the format's
description (tnetstrings.org, and mitmproxy's split of bytes and text).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

#: a length has no more digits
_DIGITS = 12


class BadNetstring(ValueError):
    """Bytes that are no typed netstring. After it nothing more of the file can be read."""


def read(file: BinaryIO) -> Iterator[Any]:
    """The values of a file. Raises BadNetstring."""
    while True:
        head = bytearray()
        while (char := file.read(1)) != b":":
            if not char:
                if head:
                    raise BadNetstring("it ends inside a value")
                return
            head += char
            if len(head) > _DIGITS or not char.isdigit():
                raise BadNetstring("no length where a value begins")
        if not head:
            raise BadNetstring("no length where a value begins")
        length = int(head)
        data = file.read(length)
        kind = file.read(1)
        if len(data) < length or not kind:
            raise BadNetstring("it ends inside a value")
        yield _value(kind, memoryview(data))


def loads(data: bytes) -> Any:
    """The one value that the bytes are. Raises BadNetstring."""
    value, rest = _pop(memoryview(data))
    if rest:
        raise BadNetstring("more than one value")
    return value


def _pop(data: memoryview) -> tuple[Any, memoryview]:
    colon = bytes(data[: _DIGITS + 1]).find(b":")
    head = bytes(data[:colon]) if colon > 0 else b""
    if not head.isdigit():
        raise BadNetstring("no length where a value begins")
    end = colon + 1 + int(head)
    if end >= len(data):
        raise BadNetstring("it ends inside a value")
    return _value(bytes(data[end : end + 1]), data[colon + 1 : end]), data[end + 1 :]


def _value(kind: bytes, data: memoryview) -> Any:
    try:
        match kind:
            case b",":
                return bytes(data)
            case b";":
                return str(data, "utf-8")
            case b"#":
                return int(bytes(data))
            case b"^":
                return float(bytes(data))
            case b"!":
                return {b"true": True, b"false": False}[bytes(data)]
            case b"~" if not data:
                return None
            case b"]":
                return _list(data)
            case b"}":
                items = _list(data)
                return dict(zip(items[::2], items[1::2], strict=True))
    except (ValueError, KeyError, TypeError) as error:
        raise BadNetstring("a value that is not of its type") from error
    raise BadNetstring("a type that is not known")


def _list(data: memoryview) -> list[Any]:
    out = []
    while data:
        value, data = _pop(data)
        out.append(value)
    return out
