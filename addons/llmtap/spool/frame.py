"""One spool record as one line: `crc32hex SP length SP json LF`.

The checksum and the length (both of the JSON bytes) let a reader tell a whole record from a torn or damaged one, and
the line feed, which JSON text never contains, is where it finds its feet again. `cut -d' ' -f3-` gives plain JSONL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

#: of a line without its JSON and the digits of its length
_TWO_LINES = "a spool record is one line: no line feed inside"
_FIXED = len("01234567") + len("  \n")


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is not a record. `reason` says why in a few words, `size` its bytes including the line feed."""

    reason: str
    size: int


def header(json: bytes) -> bytes:
    """What stands before the JSON of a record. Raises ValueError for bytes that hold a line feed: they would read back as two
    bad lines."""
    _one_line(json)
    return b"%08x %d " % (crc32(json), len(json))


def block_header(json: Sequence[bytes], block: int) -> tuple[bytes, int]:
    """The header of a record whose line is to fill blocks of `block` bytes, and how many spaces make it so: they go behind the
    JSON (here in parts) and count as part of it, so that it is a line like any other. Raises ValueError as `header`."""
    size, spaces = sum(map(len, json)), 0
    while missing := -(_FIXED + len(str(size + spaces)) + size + spaces) % block:
        spaces += missing  # may make the length a digit longer: then once more
    check = 0
    for part in (*json, b" " * spaces):
        _one_line(part)
        check = crc32(part, check)
    return b"%08x %d " % (check, size + spaces), spaces


def frame(json: bytes) -> bytes:
    """The line of a record. Raises ValueError as `header`."""
    if b"\n" in json:  # as `_one_line`; twice a request
        raise ValueError(_TWO_LINES)
    return b"%08x %d %b\n" % (crc32(json), len(json), json)


def _one_line(json: bytes) -> None:
    if b"\n" in json:
        raise ValueError(_TWO_LINES)


def unframe(line: bytes) -> bytes | Bad:
    """The JSON bytes of one line (with its line feed), or why it is none."""
    space = line.find(b" ", 9)
    if space < 0 or line[8:9] != b" ":
        return Bad("not a record", len(line))
    json = line[space + 1 : -1]
    # spelling the header again rather than reading it: int() would forgive signs, underscores and leading zeros
    if line[: space + 1] == b"%08x %d " % (crc32(json), len(json)):
        return json
    if line[9:space] != b"%d" % len(json):
        return Bad("wrong length", len(line))
    return Bad("wrong checksum", len(line))
