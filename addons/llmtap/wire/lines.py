"""Bytes cut anywhere → whole lines. Each byte is copied a constant number of times, however the input is cut."""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """One payload of a stream. `name` is "" when the format or the stream gave none."""

    name: str
    data: bytes


class LineSplitter:
    """Splits a byte stream into lines, without their ends.

    `carriage_return=True` ends a line at LF, CR or CRLF (server-sent events); False only at LF, as JSON may contain CR as
    white space. `overflow` turns true once a line is longer than `max_line` bytes (None: no limit); such a line is dropped
    and nothing after it is read.
    """

    __slots__ = ("_after_cr", "_carriage_return", "_max", "_partial", "overflow")

    def __init__(self, *, carriage_return: bool, max_line: int | None = None) -> None:
        self._carriage_return = carriage_return
        self._max = max_line
        self._partial = bytearray()
        self._after_cr = False  # the last byte seen was a CR: an LF that comes first now belongs to it
        self.overflow = False

    @property
    def idle(self) -> bool:
        """Nothing is held: the next byte starts a line."""
        return not self._partial and not self._after_cr and not self.overflow

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes. Never raises."""
        if self.overflow or not data:
            return []
        if self._after_cr:
            self._after_cr = False
            if data[0] == 10:
                data = data[1:]
                if not data:
                    return []
        if self._carriage_return:
            lines = data.splitlines()  # of bytes, unlike str: LF, CR and CRLF only
            last = data[-1]
            tail = lines.pop() if last not in (10, 13) else b""
            self._after_cr = last == 13
        else:
            lines = data.split(b"\n")
            tail = lines.pop()
        if lines and self._partial:
            lines[0] = bytes(self._partial) + lines[0]
            self._partial.clear()
        self._partial += tail
        if self._max is not None:
            self._limit(lines, self._max)
        return lines

    def _limit(self, lines: list[bytes], limit: int) -> None:
        for position, line in enumerate(lines):
            if len(line) > limit:
                del lines[position:]
                self._overflow()
                return
        if len(self._partial) > limit:
            self._overflow()

    def _overflow(self) -> None:
        self.overflow = True
        self._partial = bytearray()

    def rest(self) -> bytes:
        """Takes what is left of an unfinished last line."""
        tail = bytes(self._partial)
        self._partial.clear()
        return tail
