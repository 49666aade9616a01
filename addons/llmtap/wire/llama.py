"""llama.cpp's own `/completion`, streamed and whole: `{"content": "...", "stop": false, ...}`.

Every event has a piece of text; the last one `stop: true` with `timings`, `tokens_predicted`, `tokens_evaluated` and
`stop_type` (eos, word, limit). There is no `[DONE]`.
"""

from __future__ import annotations

from typing import Any

from llmtap.core.record import Choice, Usage
from llmtap.wire.assembler import Assembler
from llmtap.wire.engine_times import counts_of
from llmtap.wire.merge import Parts
from llmtap.wire.values import integer, string

_REASONS = {"eos": "stop", "word": "stop", "limit": "length"}


class LlamaAssembler(Assembler):
    """One choice, index 0. What a stream's last event repeats of the text is empty; a whole body has all of it."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: Parts | None = None

    def take(self, name: str, event: dict[str, Any]) -> bool:
        if self.take_error(event):
            return False
        self.identify(event)
        if self._parts is None:
            self._parts = Parts(0)
        text = event.get("content")
        said = type(text) is str and bool(text)
        if said:
            self._parts.content.append(str(text))
        tokens = event.get("tokens")
        if type(tokens) is list:
            self.token_ids += len(tokens)
        if event.get("stop") is True:
            self._stop(event)
        return said

    def take_whole(self, reply: dict[str, Any]) -> bool:
        return self.take("", reply)

    def choices(self) -> list[Choice]:
        return [] if self._parts is None else [self._parts.build(keep_empty=True)]

    def _stop(self, event: dict[str, Any]) -> None:
        self.complete = True
        if self._parts is not None:
            reason = string(event.get("stop_type"))
            self._parts.finish_reason = _REASONS.get(reason or "", reason)
        self.note("timings", event.get("timings"))
        counts = counts_of(event.get("timings"))
        evaluated, predicted = integer(event.get("tokens_evaluated")), integer(event.get("tokens_predicted"))
        if evaluated is not None and predicted is not None:
            # `tokens_evaluated` is the whole prompt; `tokens_cached` is what the slot now holds, not what it held before
            self.usage = Usage(evaluated, predicted, counts[2] if counts else None, source="upstream")
        elif counts is not None:
            self.usage = Usage(*counts, source="upstream")
