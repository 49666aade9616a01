"""Replies at paths nobody here knows, read when they look like something known: a first event or a body says what it is.

Paths become known by configuration only (`routing.allow_paths`, `/proxy/<port>/...`), so what they answer has to speak for
itself. What does not is left alone: sizes and times are all that is measured of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmtap.core.errors import WireError
from llmtap.core.record import Summary
from llmtap.wire.jsonload import load_object
from llmtap.wire.ndjson import NdjsonDecoder
from llmtap.wire.sse import SseDecoder

#: this much of a reply is looked at; a first event is far smaller
MAX_LOOK = 64 * 1024
#: a whole body is only looked at up to this size
MAX_BODY = 16 * 1024 * 1024
_OBJECTS = {
    "chat.completion.chunk": "chat",
    "chat.completion": "chat",
    "text_completion": "completions",
    "transcription.chunk": "transcriptions",
    "translation.chunk": "translations",
    "response": "responses",
}


def endpoint_like(reply: dict[str, Any]) -> str | None:
    """The endpoint whose replies (or first events) look like this one."""
    kind = reply.get("object")
    if type(kind) is str and kind in _OBJECTS:
        return _OBJECTS[kind]
    kind = reply.get("type")
    if type(kind) is str:
        if kind in ("message_start", "message"):
            return "messages"
        if kind.startswith("response."):
            return "responses"
    if type(reply.get("done")) is bool:
        if type(reply.get("message")) is dict:
            return "ollama_chat"
        if type(reply.get("response")) is str:
            return "ollama_generate"
    if type(reply.get("stop")) is bool and type(reply.get("content")) is str:
        return "llama_completion"
    usage = reply.get("usage")
    if type(usage) is dict and "prompt_tokens" in usage and type(reply.get("data", reply.get("results"))) is list:
        return "embeddings"
    return None


class Sniffer:
    """A decoder that looks at the beginning, and then becomes the right one, or none.

    `make(endpoint)` gives the decoder of a known endpoint. `understands` turns true when there is one.
    """

    def __init__(self, source: SseDecoder | NdjsonDecoder | None, make: Callable[[str], Any]) -> None:
        """`source`: how events are framed; None for one JSON body."""
        self._source = source
        self._make = make
        self._inner: Any = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._given_up = False

    @property
    def understands(self) -> bool:
        return self._inner is not None

    @property
    def summary(self) -> Summary:
        return self._inner.summary if self._inner is not None else Summary()

    def quick(self, data: bytes) -> int:
        return self._inner.quick(data) if self._inner is not None else -1

    def feed(self, data: bytes) -> int:
        if self._inner is not None:
            return int(self._inner.feed(data))
        if self._given_up or not data:
            return 0
        self._pieces.append(data)
        self._size += len(data)
        if self._source is not None:
            try:
                events = self._source.feed(data)
            except WireError:
                return self._give_up()
            return self._look([event.data for event in events])
        return self._give_up() if self._size > MAX_BODY else 0

    def close(self) -> int:
        if self._inner is None and self._source is None and not self._given_up:
            self._look([b"".join(self._pieces)])
        return int(self._inner.close()) if self._inner is not None else 0

    def _look(self, texts: list[bytes]) -> int:
        for text in texts:
            try:
                endpoint = endpoint_like(load_object(text))
            except WireError:
                return self._give_up()
            if endpoint is not None:
                self._inner = self._make(endpoint)
                pieces, self._pieces = self._pieces, []
                return sum(self._inner.feed(piece) for piece in pieces)
            return self._give_up()  # the first says it or none does
        return self._give_up() if self._size > MAX_LOOK and self._source is not None else 0

    def _give_up(self) -> int:
        self._given_up = True
        self._pieces.clear()
        return 0
