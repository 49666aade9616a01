"""Events that differ from one already understood in one string only: read without parsing the rest again.

A model server writes a stream as the same bytes over and over around each delta:

    data: {"id":"chatcmpl-1",...,"choices":[{"index":0,"delta":{"content":"   Hello   "},"logprobs":null,...}]}⏎⏎
    └──────────────────────────── head ─────────────────────────────────────┘└─ slot ─┘└────────── tail ────────┘

When one event has been read the long way, `learn` finds where its text stands and keeps what is around it as a `Shape`.
Bytes that are `head + X + tail`, X being the inside of any JSON string, then mean the same event with the text X, so only
X has to be read. The argument that this is exact:

1. JSON is composed: replacing one string by another string changes that one value and nothing else. That the slot is this
   value, and not one of the same looks elsewhere, `learn` makes sure of by parsing the event again with a marker in it.
2. `"X"` is one string exactly when a JSON parser takes it as a whole document. For many events at once, every joint
   (tail + head) is replaced by `","` and the list parsed: were there a quote inside any X, the list would have another
   length or a member that is no string. That holds where no quote follows a backslash; where one does, events go one by one.
3. Neither head, tail nor a valid X contains a line feed other than the event's own (JSON strings have no control
   characters), so the lines of the event are those of the one learned.

Whatever does not fit is left to the long way. What the event does besides carrying its text is the assembler's business:
it offers a slot only for an event that does nothing else, or tells how to do that again (`restore`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

#: an event as learned is at most this long; pieces longer than MAX_PIECE go the long way, in parts
MAX_EVENT = 16 * 1024
MAX_PIECE = 1024 * 1024
#: one for each choice of a stream with several, or for reasoning and content
MAX_SHAPES = 8
#: how often a stream's events are tried for a shape, so that one whose every event looks different costs little more
MAX_LEARNED = 16
#: bytes of a tail and of a head that stand between two texts in any stream: `}` and a blank line, `data: ` or `event:`
_TAIL, _HEAD = 3, 6

_MARK = "\x02llmtap slot\x03"
_MARKED = orjson.dumps(_MARK)
_END = b"\n\n"
_loads = orjson.loads


class Shape:
    """What stands around the text of one kind of event, and where its text goes.

    `parts`: the list that takes the text. `restore`: does again what an event of this shape does besides (setting a role);
    called when another event came in between. None: it does nothing else.
    """

    __slots__ = ("_before", "_behind", "_between", "_least", "_seam", "head", "joint", "parts", "restore", "tail")

    def __init__(self, head: bytes, tail: bytes, parts: list[str], restore: Callable[[], None] | None = None) -> None:
        """`head` ends with the opening quote, `tail` begins with the closing one and ends with the blank line."""
        self.head = head
        self.tail = tail
        self.joint = tail + head
        self.parts = parts
        self.restore = restore
        self._before = len(head) - 1
        self._behind = len(tail) - 1
        self._least = len(head) + len(tail)
        # bytes.split prepares a long separator anew for each place it finds: a short one, out of the joint's middle, is found
        # in a fifth of the time
        self._seam = tail[-_TAIL:] + head[:_HEAD]
        self._between = slice(len(head) - _HEAD, _TAIL - len(tail))

    def take(self, data: bytes) -> int:
        """`data` is whole events of this shape: their texts are taken, and how many are not empty is returned.
        -1 when it is anything else, and nothing is taken."""
        size = len(data)
        if size < self._least or not data.startswith(self.head) or not data.endswith(self.tail):
            return -1
        text = data[self._before : size - self._behind]  # with its quotes
        try:
            if len(text) > self._least:
                texts = data[_HEAD:-_TAIL].split(self._seam)
                if len(texts) > 1:
                    return self._many(texts, text)
            value = _loads(text)
        except orjson.JSONDecodeError:
            return -1
        if not value:
            return 0
        self.parts.append(value)
        return 1

    def _many(self, texts: list[bytes], whole: bytes) -> int:
        between = self._between
        texts = [text[between] for text in texts]
        if self.joint.join(texts) != whole[1:-1]:
            return -1
        joined = b'","'.join(texts)
        if b'\\"' in joined:
            return -1
        values: list[Any] = _loads(b'["%b"]' % joined)
        if len(values) != len(texts):
            return -1
        try:
            text = "".join(values)
        except TypeError:
            return -1
        if text:
            self.parts.append(text)
        return len(values) - values.count("")


class Slot(NamedTuple):
    """Where the text of an event stands, the list it goes to, and what else the event does (see `Shape`)."""

    path: tuple[str | int, ...]
    parts: list[str]
    restore: Callable[[], None] | None = None


def learn(name: str, data: bytes, slot: Slot) -> Shape | None:
    """The shape of an event `name` with the JSON text `data`. None when its text is not found, or not safe to cut out."""
    path, parts, restore = slot
    if len(data) > MAX_EVENT or b"\n" in data:
        return None
    member = b'"%b":' % str(path[-1]).encode()
    place = data.find(member)
    if place < 0:
        return None
    start = place + len(member)
    while data[start : start + 1] == b" ":
        start += 1
    end = _string_end(data, start)
    if end < 0:
        return None
    before, behind = data[:start], data[end:]
    if _tells(before) or _tells(behind):
        return None
    try:
        found: Any = _loads(before + _MARKED + behind)
        for step in path:
            found = found[step]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    if found != _MARK:
        return None
    head = b"event: %b\ndata: " % name.encode() if name else b"data: "
    return Shape(head + before + b'"', b'"' + behind + _END, parts, restore)


def _tells(part: bytes) -> bool:
    """A usage or a finish reason: such an event is one of its kind, and `withhold` looks at each of them."""
    if b'"usage"' in part and part.count(b'"usage"') != part.count(b'"usage":null'):
        return True
    return b'"finish_reason"' in part and part.count(b'"finish_reason"') != part.count(b'"finish_reason":null')


def _string_end(data: bytes, start: int) -> int:
    """Behind the closing quote of the string that begins at `start`; -1 when there is none."""
    if data[start : start + 1] != b'"':
        return -1
    end = start
    while True:
        end = data.find(b'"', end + 1)
        if end < 0:
            return -1
        before = data[start + 1 : end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return end + 1
