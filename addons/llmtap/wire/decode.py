"""Which decoder reads a reply, and the decoders: bytes cut anywhere → counts of content events, and a `Summary`.

    SSE of a generating endpoint          StreamDecoder(SseDecoder, its assembler)
    NDJSON of Ollama                      StreamDecoder(NdjsonDecoder, Ollama's assembler)
    JSON of a known endpoint              BodyDecoder: collected up to a cap, read at close
    numbers with their JSON in a header   HeaderDecoder (vLLM's embeddings as bytes)
    text of a transcription               TextDecoder
    any error status                      ErrorDecoder: the body's error, whatever its shape
    what unknown paths answer             Sniffer: the decoder of what it looks like
    anything else                         NullDecoder

Endpoint names are those of `core.endpoints`; Ollama's are ollama_chat, ollama_generate, ollama_embed and
ollama_embeddings. A decoder raises nothing but WireError, once; after it, it takes no more and keeps what it had
(`meta.wire_error` says what was wrong).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmtap.core.endpoints import OTHER
from llmtap.core.errors import WireError
from llmtap.core.record import Summary
from llmtap.wire.anthropic import AnthropicAssembler
from llmtap.wire.assembler import Assembler
from llmtap.wire.faults import MAX_MESSAGE, body_error
from llmtap.wire.jsonload import CutShort, load_object
from llmtap.wire.llama import LlamaAssembler
from llmtap.wire.ndjson import NdjsonDecoder
from llmtap.wire.ollama import OllamaAssembler
from llmtap.wire.openai import OpenAIAssembler
from llmtap.wire.plain import TextDecoder, UsageAssembler
from llmtap.wire.responses import ResponsesAssembler
from llmtap.wire.sniff import Sniffer
from llmtap.wire.sse import SseDecoder
from llmtap.wire.stream import Faulty, StreamDecoder

MAX_BODY = 64 * 1024 * 1024
_MAX_ERROR_BODY = 1024 * 1024


class Decoder(Protocol):
    """Reads one reply."""

    @property
    def understands(self) -> bool:
        """False when it only looks on: `summary` then says nothing."""

    def feed(self, data: bytes) -> int:
        """Takes a piece of the body: how many content-bearing events it completed. Raises WireError."""

    def quick(self, data: bytes) -> int:
        """The short way, for a piece of whole events of a kind well known: as `feed`, but -1 when it is anything else, and
        nothing is taken then. The events have no usage and end no choice. Raises nothing."""

    def close(self) -> int:
        """The body is over, cleanly or not: content-bearing events it still completed. Raises WireError."""

    @property
    def summary(self) -> Summary:
        """What is understood so far; call `close` first for the last of it."""


class NullDecoder:
    """For formats nobody here knows."""

    understands = False
    summary: Summary

    def __init__(self) -> None:
        self.summary = Summary()

    def feed(self, data: bytes) -> int:
        return 0

    def quick(self, data: bytes) -> int:
        return -1

    def close(self) -> int:
        return 0


class BodyDecoder(Faulty):
    """One JSON body, read at close. A body that was cut off is no fault of its format: it is just not complete."""

    understands = True

    def __init__(self, assembler: Assembler, max_body: int = MAX_BODY) -> None:
        super().__init__()
        self._assembler = assembler
        self._max = max_body
        self._size = 0
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> int:
        if self._error is not None or self._closed:
            return self._tell()
        self._size += len(data)
        if self._size > self._max:
            self._pieces.clear()
            return self._fault(WireError(f"body larger than {self._max} bytes"), 0)
        self._pieces.append(data)
        return 0

    def quick(self, data: bytes) -> int:
        return -1

    def close(self) -> int:
        if self._error is not None or self._closed:
            return self._tell()
        self._closed = True
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._assembler.skim(body):
            return 0
        try:
            return int(self._assembler.whole(load_object(body)))
        except CutShort:
            return 0
        except WireError as error:
            return self._fault(error, 0)

    @property
    def summary(self) -> Summary:
        return self._mark(self._assembler.summary())


class ErrorDecoder:
    """The body of an answer with status >= 400; at most 1 MiB of it is looked at. Raises nothing."""

    understands = True

    def __init__(self, status: int) -> None:
        self._status = status
        self._size = 0
        self._pieces: list[bytes] = []
        self._closed = False
        self.summary = Summary(error_type=f"http_{status}")

    def feed(self, data: bytes) -> int:
        if not self._closed and self._size < _MAX_ERROR_BODY:
            self._size += len(data)
            self._pieces.append(data[:_MAX_ERROR_BODY])
        return 0

    def quick(self, data: bytes) -> int:
        return -1

    def close(self) -> int:
        if not self._closed:
            self._closed = True
            body = b"".join(self._pieces)
            self._pieces.clear()
            kind, message = body_error(body, self._status)
            self.summary.error_type = kind
            self.summary.error_message = message[:MAX_MESSAGE] or None
            self.summary.complete = True
        return 0


class HeaderDecoder:
    """Embeddings asked for as bytes: vLLM puts what else its JSON would have said into the header `metadata`."""

    understands = True

    def __init__(self, metadata: str) -> None:
        self._assembler = UsageAssembler()
        self._metadata = metadata

    def quick(self, data: bytes) -> int:
        return -1

    def feed(self, data: bytes) -> int:
        return 0

    def close(self) -> int:
        if not self._assembler.complete:
            try:
                self._assembler.whole(load_object(self._metadata.encode("utf-8", "replace")))
            except WireError:
                self._assembler.complete = True
        return 0

    @property
    def summary(self) -> Summary:
        return self._assembler.summary()


def _text(make: Callable[..., Assembler]) -> Callable[[], Assembler]:
    return lambda: make(text=True)


_EVENTS: dict[str, Callable[[], Assembler]] = {
    "chat": OpenAIAssembler,
    "completions": _text(OpenAIAssembler),
    "responses": ResponsesAssembler,
    "messages": AnthropicAssembler,
    "transcriptions": OpenAIAssembler,
    "translations": OpenAIAssembler,
}
#: what only an unknown path can turn out to be
_LIKE_SSE: dict[str, Callable[[], Assembler]] = {**_EVENTS, "llama_completion": LlamaAssembler}
_LINES: dict[str, Callable[[], Assembler]] = {
    "ollama_chat": OllamaAssembler,
    "ollama_generate": _text(OllamaAssembler),
}
_BODIES: dict[str, Callable[[], Assembler]] = {
    "chat": OpenAIAssembler,
    "chat_batch": OpenAIAssembler,
    "completions": _text(OpenAIAssembler),
    "responses": ResponsesAssembler,
    "messages": AnthropicAssembler,
    "transcriptions": _text(UsageAssembler),
    "translations": _text(UsageAssembler),
    "ollama_chat": OllamaAssembler,
    "ollama_generate": _text(OllamaAssembler),
    "ollama_embed": OllamaAssembler,
    "ollama_embeddings": OllamaAssembler,
    **dict.fromkeys(
        ("embeddings", "pooling", "classify", "score", "rerank", "tokenize", "detokenize", "count_tokens"), UsageAssembler
    ),
}
_LIKE_BODY: dict[str, Callable[[], Assembler]] = {**_BODIES, "llama_completion": LlamaAssembler}
_NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})


def decoder_for(
    endpoint: str, content_type: str, status: int, *, metadata: str | None = None, max_body: int = MAX_BODY
) -> Decoder:
    """The decoder of a reply to `endpoint` with this content type and status. `metadata`: the reply's header of that name;
    `max_body`: cap in bytes of a whole JSON body."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream" and endpoint in _EVENTS:
        return StreamDecoder(SseDecoder(), _EVENTS[endpoint]())
    if status >= 400:
        return ErrorDecoder(status)
    if kind in _NDJSON and endpoint in _LINES:
        return StreamDecoder(NdjsonDecoder(), _LINES[endpoint]())
    if (kind == "application/json" or kind.endswith("+json")) and endpoint in _BODIES:
        return BodyDecoder(_BODIES[endpoint](), max_body)
    if endpoint == OTHER.name:
        return _sniffer(kind, max_body)
    if kind == "text/plain" and endpoint in ("transcriptions", "translations"):
        return TextDecoder(max_body)
    if kind == "application/octet-stream" and metadata is not None and endpoint in ("embeddings", "pooling"):
        return HeaderDecoder(metadata)
    return NullDecoder()


def _sniffer(kind: str, max_body: int) -> Decoder:
    def events(endpoint: str) -> Decoder:
        return StreamDecoder(SseDecoder(), _LIKE_SSE[endpoint]()) if endpoint in _LIKE_SSE else NullDecoder()

    def lines(endpoint: str) -> Decoder:
        return StreamDecoder(NdjsonDecoder(), _LINES[endpoint]()) if endpoint in _LINES else NullDecoder()

    def body(endpoint: str) -> Decoder:
        return BodyDecoder(_LIKE_BODY[endpoint](), max_body) if endpoint in _LIKE_BODY else NullDecoder()

    if kind == "text/event-stream":
        return Sniffer(SseDecoder(), events)
    if kind in _NDJSON:
        return Sniffer(NdjsonDecoder(), lines)
    return Sniffer(None, body) if kind == "application/json" else NullDecoder()
