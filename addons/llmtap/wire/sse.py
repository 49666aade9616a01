"""Server-sent events without I/O: bytes in, events out, cut anywhere.

The rules are the WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation):
lines end at LF, CR or CRLF, a leading byte order mark is dropped, `:` starts a comment, several `data` fields join with
LF, a blank line dispatches, an event without a `data` field is dropped. `id` and `retry` mean nothing here.

Strategy: nearly every piece that a model server writes is one whole `data: {...}\\n\\n`, so that shape is recognised without
touching the line machinery; everything else goes through `LineSplitter`, which is linear for any cut.
"""

from __future__ import annotations

from llmtap.core.errors import WireError
from llmtap.wire.lines import Event, LineSplitter

_BOM = b"\xef\xbb\xbf"
#: far above any event a model server sends (a whole Responses object, token ids of a long prompt)
MAX_EVENT = 16 * 1024 * 1024


class SseDecoder:
    """`feed(bytes) -> list[Event]`.

    Raises WireError when an event is longer than `max_event` bytes (None: no limit). Events before the fault are returned
    first, the error then comes from the next call; every call after it raises again.
    """

    __slots__ = ("_data", "_failed", "_head", "_lines", "_name", "_size", "between", "max_event")

    def __init__(self, max_event: int | None = MAX_EVENT) -> None:
        self.max_event = max_event
        self._lines = LineSplitter(carriage_return=True, max_line=None if max_event is None else max_event + 64)
        self._data: list[bytes] = []
        self._name = ""
        self._size = 0
        self._head: bytes | None = b""  # the first bytes while they may still be a byte order mark, None after that
        self.between = True  # two events: nothing is held back, the next byte begins one
        self._failed = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes."""
        if self.between and data.startswith(b"data: ") and data.endswith(b"\n\n"):
            end = len(data) - 2
            if data.find(b"\n") == end and (self.max_event is None or end - 6 <= self.max_event) and data.find(b"\r") < 0:
                self._head = None
                return [Event("", data[6:end])]
        if self._failed:
            raise self._error()
        if self._head is not None:
            data = self._strip_mark(data)
        events = self._read(self._lines.feed(data))
        self._failed = self._failed or self._lines.overflow
        self.between = self._lines.idle and not self._data and not self._name and self._head is None and not self._failed
        if self._failed and not events:
            raise self._error()
        return events

    def close(self) -> list[Event]:
        """The event that the end of input cut off before its blank line, if it has data.

        The standard drops it; the SDKs of model servers read it, as some servers end without a blank line.
        """
        if self._failed:
            raise self._error()
        line = self._lines.rest() if self._head is None else self._head
        events = self._read([line, b""] if line else [b""])
        if self._failed:
            raise self._error()
        return events

    def _strip_mark(self, data: bytes) -> bytes:
        head = (self._head or b"") + data
        if len(head) < 3 and _BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(_BOM)

    def _read(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(Event(self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)))
                    self._data = []
                    self._size = 0
                self._name = ""
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._size += len(value) + bool(self._data)
                if self.max_event is not None and self._size > self.max_event:
                    self._failed = True
                    break
                self._data.append(value)
            elif line[0] != 58:  # not a comment
                field, _, value = line.partition(b":")
                if field == b"event":
                    self._name = value.removeprefix(b" ").decode("utf-8", "replace")
                elif field == b"data":  # a field without a colon has the empty value
                    self._size += bool(self._data)
                    self._data.append(b"")
        return events

    def _error(self) -> WireError:
        return WireError(f"server-sent event longer than {self.max_event} bytes")
