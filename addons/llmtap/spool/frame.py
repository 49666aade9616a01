"""One spool record as one line: `crc32hex SP length SP json LF`.

The checksum and the length (both of the JSON bytes) let a reader tell a whole record from a torn or damaged one, and
the line feed, which JSON text never contains, is where it finds its feet again. `cut -d' ' -f3-` gives plain JSONL.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is not a record. `reason` says why in a few words, `size` its bytes including the line feed."""

    reason: str
    size: int


def header(json: bytes) -> bytes:
    """What stands before the JSON of a record. Raises ValueError for bytes that hold a line feed: they would read back as two
    bad lines."""
    if b"\n" in json:
        raise ValueError("a spool record is one line: no line feed inside")
    return b"%08x %d " % (crc32(json), len(json))


def frame(json: bytes) -> bytes:
    """The line of a record. Raises ValueError as `header`."""
    return b"%b%b\n" % (header(json), json)


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
