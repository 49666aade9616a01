"""Newline-delimited JSON without I/O: bytes in, one event a line out, cut anywhere. Blank lines are skipped."""

from __future__ import annotations

from llmtap.core.errors import WireError
from llmtap.wire.lines import Event, LineSplitter

#: far above any line a model server sends
MAX_LINE = 16 * 1024 * 1024


class NdjsonDecoder:
    """`feed(bytes) -> list[Event]`, the lines' JSON texts, unparsed and unnamed.

    Raises WireError when a line is longer than `max_line` bytes (None: no limit). Lines before the fault are returned
    first, the error then comes from the next call; every call after it raises again.
    """

    __slots__ = ("_lines", "_max")

    def __init__(self, max_line: int | None = MAX_LINE) -> None:
        self._max = max_line
        self._lines = LineSplitter(carriage_return=False, max_line=max_line)

    def feed(self, data: bytes) -> list[Event]:
        """The lines that `data` completes."""
        lines = [Event("", line) for line in self._lines.feed(data) if line and not line.isspace()]
        if self._lines.overflow and not lines:
            raise WireError(f"line longer than {self._max} bytes")
        return lines

    def close(self) -> list[Event]:
        """The last line, when the input ended without a line feed."""
        if self._lines.overflow:
            raise WireError(f"line longer than {self._max} bytes")
        line = self._lines.rest()
        return [Event("", line)] if line and not line.isspace() else []
