"""Replies that are measured but not kept: embeddings, scores, reranking, classification. Usage, never the payload."""

from __future__ import annotations

from typing import Any

from llmtap.core.record import Choice
from llmtap.wire.assembler import Assembler
from llmtap.wire.merge import Parts
from llmtap.wire.usage import openai_usage
from llmtap.wire.values import integer


class UsageAssembler(Assembler):
    """`usage` as OpenAI writes it, or Cohere's `meta.billed_units`. `text=True` also keeps a transcription's `text`."""

    def __init__(self, *, text: bool = False) -> None:
        super().__init__()
        self._keep_text = text
        self._parts: Parts | None = None

    def take(self, name: str, event: dict[str, Any]) -> bool:
        self.identify(event)
        usage = openai_usage(event.get("usage"))
        meta = event.get("meta")
        units = meta.get("billed_units") if type(meta) is dict else None
        if usage is None and type(units) is dict:
            usage = openai_usage({"prompt_tokens": integer(units.get("input_tokens"))})
        self.usage = usage or self.usage
        self.take_error(event)
        text = event.get("text")
        if not self._keep_text or type(text) is not str:
            return False
        self._parts = Parts(0)
        self._parts.content.append(text)
        return bool(text)

    def take_whole(self, reply: dict[str, Any]) -> bool:
        return self.take("", reply)

    def choices(self) -> list[Choice]:
        return [] if self._parts is None else [self._parts.build(keep_empty=True)]
