"""Streams read: bytes cut anywhere → events → an assembler, with a short way for events of a shape already learned.

Any piece may be read in parts, as any cut of a stream gives the same events. So whole events at the end of a piece are
offered to the shapes (`shapes`), as many at once as are alike, and what no shape takes goes through the event source and the
assembler.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmtap.core.errors import WireError
from llmtap.core.record import Summary
from llmtap.wire.assembler import Assembler
from llmtap.wire.ndjson import NdjsonDecoder
from llmtap.wire.shapes import MAX_PIECE, Shape
from llmtap.wire.sse import SseDecoder

#: bytes of a stream that are read; what is kept of them is much less
MAX_STREAM = 1024 * 1024 * 1024
_END = b"\n\n"
#: how often a piece may be found to have other events among those that looked alike; after that they are read one by one
_MAX_RUNS = 2


class Faulty:
    """Raise once, then be quiet. A piece that had content before the fault returns its count; the error comes next."""

    def __init__(self) -> None:
        self._error: WireError | None = None
        self._told = False
        self._closed = False

    def _fault(self, error: WireError, count: int) -> int:
        self._error = error
        if count:
            return count
        return self._tell()

    def _tell(self) -> int:
        if self._error is not None and not self._told:
            self._told = True
            raise self._error
        return 0

    def _mark(self, summary: Summary) -> Summary:
        if self._error is not None:
            summary.meta["wire_error"] = str(self._error)
        return summary


class StreamDecoder(Faulty):
    """Server-sent events or JSON lines."""

    understands = True

    def __init__(self, source: SseDecoder | NdjsonDecoder, assembler: Assembler, max_stream: int = MAX_STREAM) -> None:
        super().__init__()
        self._source = source
        self._assembler = assembler
        self._left = max_stream
        #: the source while shapes may be of use to it
        self._sse = source if isinstance(source, SseDecoder) and assembler.repeats else None
        #: longest piece for the short way: an event that is too long must be told as such
        self._longest = MAX_PIECE if self._sse is None or self._sse.max_event is None else min(MAX_PIECE, self._sse.max_event)
        self._live: Sequence[Shape] = ()  # the shapes, while the next byte begins an event of a stream that goes on
        self._found = 0  # content events in the piece in hand

    def quick(self, data: bytes) -> int:
        """Takes a piece that is nothing but whole events of one learned shape: how many have content. They have no
        usage and end no choice. -1 when it is anything else: nothing is taken, `feed` it. Raises nothing."""
        if not len(data) <= self._longest <= self._left:
            return -1
        for shape in self._live:
            count = shape.take(data)
            if count >= 0:
                assembler = self._assembler
                if assembler.last_shape is not shape:
                    assembler.last_shape = shape
                    if shape.restore is not None:
                        shape.restore()
                assembler.content_events += count
                self._left -= len(data)
                return count
        return -1

    def feed(self, data: bytes) -> int:
        count = self.quick(data)
        if count >= 0:
            return count
        if self._error is not None or self._closed:
            return self._tell()
        over = len(data) > self._left
        if over:
            data = data[: self._left]
        self._found = 0
        try:
            if self._sse is None:
                self._read(data)
            else:
                self._read_parts(data, self._sse)
        except WireError as error:
            return self._stop(error, self._found)
        return self._stop(WireError("the stream is too long to follow"), self._found) if over else self._found

    def _read_parts(self, data: bytes, sse: SseDecoder) -> None:
        """The end of an event begun before, whole events, the beginning of the next."""
        start = 0
        if not sse.between:
            start = data.find(_END) + 2
            if start == 1:
                self._read(data)
                return
            self._read(data[:start])
        last = data.rfind(_END, start) + 2
        if last > 1:
            events = data[start:last]
            count = self.quick(events) if len(events) != len(data) else -1  # the whole piece has been tried
            if count >= 0:
                self._found += count
            else:
                self._read_each(events)
            start = last
        if start < len(data):
            self._read(data[start:])

    def _read_each(self, events: bytes) -> None:
        """Whole events that are not all alike: those that are, between others, at once."""
        start, tries = 0, _MAX_RUNS
        while start < len(events):
            end = self._alike(events, start) if tries else 0
            if end:
                count = self.quick(events[start:end])
                if count >= 0:
                    self._found += count
                    start = end
                    continue
                tries -= 1
            end = events.find(_END, start) + 2
            if end == 1:  # a third line feed
                end = len(events)
            event = events[start:end]
            count = self.quick(event)
            if count >= 0:
                self._found += count
            else:
                self._read(event)
            start = end

    def _alike(self, events: bytes, start: int) -> int:
        """Where the last event ends that may be of the same shape as the one at `start`, several of them; 0: nowhere."""
        for shape in self._live:
            if events.startswith(shape.head, start):
                last = events.rfind(shape.tail, start)
                end = last + len(shape.tail)
                return end if last > events.find(_END, start) else 0
        return 0

    def _read(self, data: bytes) -> None:
        self._left -= len(data)
        assembler = self._assembler
        for name, payload in self._source.feed(data):
            self._found += assembler.event(name, payload)
        sse = self._sse
        if sse is not None:
            self._live = assembler.shapes if sse.between and not assembler.complete else ()

    def close(self) -> int:
        if self._error is not None or self._closed:
            return self._tell()
        self._closed = True
        self._live = ()
        count = 0
        try:
            for name, payload in self._source.close():
                count += self._last(name, payload)
        except WireError as error:
            return self._stop(error, count)
        self._finish()
        return count

    def _last(self, name: str, payload: bytes) -> bool:
        # what has no end of line or no blank line after it may be cut anywhere: taken if it happens to be whole
        try:
            return self._assembler.event(name, payload)
        except WireError:
            return False

    def _stop(self, error: WireError, count: int) -> int:
        self._live = ()
        self._finish()
        return self._fault(error, count)

    def _finish(self) -> None:
        self._assembler.finish()
        # shapes know their assembler: a cycle would wait for the collector
        self._assembler.shapes.clear()
        self._assembler.last_shape = None

    @property
    def summary(self) -> Summary:
        return self._mark(self._assembler.summary())
