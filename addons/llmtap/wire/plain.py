"""Replies that are measured but not kept: embeddings, scores, reranking, classification. Usage, never the payload.

Such a body is mostly numbers, up to megabytes of them, and all that is wanted stands before or behind them:

    {"id":"embd-1","object":"list","created":1,"model":"m","data":[ ... ],"usage":{"prompt_tokens":3,"total_tokens":3}}

`skim` parses just that. A quote inside a JSON string is always escaped, so `,"data":[` and `"usage":` can only be members;
that they belong to the outermost object shows when what is before one, closed by `}`, and what is behind the other, opened
by `{`, are objects by themselves.
"""

from __future__ import annotations

from typing import Any

import orjson

from llmtap.core.record import Choice, Summary
from llmtap.wire.assembler import Assembler
from llmtap.wire.merge import Parts
from llmtap.wire.usage import openai_usage
from llmtap.wire.values import integer, number

#: smaller bodies are parsed whole: nothing is to be gained
SKIM_FROM = 8 * 1024
_PAYLOADS = (b',"data":[', b',"results":[', b',"embeddings":{')
#: what is kept of a small answer: token counts of tokenizers, the length and language of a recording
_NOTES = ("count", "input_tokens", "max_model_len", "duration", "language", "task")


class UsageAssembler(Assembler):
    """`usage` as OpenAI writes it, or Cohere's `meta.billed_units`. `text=True` also keeps a transcription's `text`.

    A transcription counts no tokens but the seconds of its recording: `usage {"type": "duration", "seconds"}` becomes
    `meta.audio_seconds`.
    """

    def __init__(self, *, text: bool = False) -> None:
        super().__init__()
        self._keep_text = text
        self._parts: Parts | None = None

    def take(self, name: str, event: dict[str, Any]) -> bool:
        self.identify(event)
        given = event.get("usage")
        usage = openai_usage(given)
        meta = event.get("meta")
        units = meta.get("billed_units") if type(meta) is dict else None
        if usage is None and type(units) is dict:
            usage = openai_usage({"prompt_tokens": integer(units.get("input_tokens"))})
        self.usage = usage or self.usage
        if type(given) is dict and given.get("type") == "duration":
            self.note("audio_seconds", number(given.get("seconds")))
        for note in _NOTES:
            if note in event:
                self.note(note, event[note])
        self.take_error(event)
        text = event.get("text")
        if not self._keep_text or type(text) is not str:
            return False
        self._parts = Parts(0)
        self._parts.content.append(text)
        return bool(text)

    def take_whole(self, reply: dict[str, Any]) -> bool:
        return self.take("", reply)

    def skim(self, body: bytes) -> bool:
        if len(body) < SKIM_FROM or self._keep_text or not body.rstrip().endswith((b"]}", b"}}")):
            return False
        starts = [place for place in map(body.find, _PAYLOADS) if place > 0]
        if not starts:
            return False
        try:
            known = orjson.loads(body[: min(starts)] + b"}")
            if "usage" not in known:
                known |= orjson.loads(b"{" + body[max(body.rfind(b'"usage":'), body.rfind(b'"meta":')) :])
        except (orjson.JSONDecodeError, TypeError):
            return False
        if "usage" not in known and "meta" not in known:
            return False
        self.take("", known)
        self.complete = True
        return True

    def choices(self) -> list[Choice]:
        return [] if self._parts is None else [self._parts.build(keep_empty=True)]


class TextDecoder:
    """A transcription as plain text, subtitles included: the text is the reply."""

    understands = True

    def __init__(self, max_text: int) -> None:
        self._max = max_text
        self._assembler = UsageAssembler(text=True)
        self._pieces: list[bytes] = []
        self._size = 0

    def quick(self, data: bytes) -> int:
        return -1

    def feed(self, data: bytes) -> int:
        self._size += len(data)
        if self._size <= self._max:
            self._pieces.append(data)
        return 0

    def close(self) -> int:
        if self._assembler.complete:
            return 0
        text = b"".join(self._pieces).decode("utf-8", "replace")
        self._pieces.clear()
        if self._size > self._max:
            self._assembler.note("truncated", True)
        return int(self._assembler.whole({"text": text}))

    @property
    def summary(self) -> Summary:
        return self._assembler.summary()
