"""A reply that is kept to be given again: its bytes, what was understood of it, and how it came. Pure; packed for Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from llmtap.core.record import Choice, Summary, ToolCall, Usage

VERSION = 1
#: what an entry takes in memory beside its bytes: objects, the summary's fields
_OVERHEAD = 2000


@dataclass(slots=True, eq=False)
class Answer:
    """`streamed`: `body` is the events of a stream, with its usage event, and `pieces` may say when they came: (milliseconds
    since the piece before, length). `forms`: what has been made of it, by name."""

    streamed: bool
    content_type: str
    body: bytes
    summary: Summary
    pieces: tuple[tuple[int, int], ...] = ()
    forms: dict[str, bytes | None] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of memory, about: what may be made of it included."""
        return 3 * len(self.body) + 16 * len(self.pieces) + _OVERHEAD


def pack(answer: Answer) -> bytes:
    """One line of JSON, then the body."""
    head = {
        "v": VERSION,
        "streamed": answer.streamed,
        "content_type": answer.content_type,
        "summary": answer.summary,
        "pieces": answer.pieces,
    }
    return orjson.dumps(head) + b"\n" + answer.body


def unpack(data: bytes) -> Answer | None:
    """The inverse; None for what another version, or somebody else, has written."""
    line, _, body = data.partition(b"\n")
    try:
        head = orjson.loads(line)
        if head["v"] != VERSION:
            return None
        pieces = tuple((int(gap), int(length)) for gap, length in head["pieces"])
        return Answer(bool(head["streamed"]), str(head["content_type"]), body, _summary(head["summary"]), pieces)
    except (ValueError, KeyError, TypeError):
        return None


def _summary(plain: dict[str, Any]) -> Summary:
    choices = [
        Choice(**{**choice, "tool_calls": [ToolCall(**call) for call in choice["tool_calls"]]}) for choice in plain["choices"]
    ]
    return Summary(**{**plain, "choices": choices, "usage": Usage(**plain["usage"])})
