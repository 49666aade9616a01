"""Ollama's own API: chat, generate and embed, as lines (the default) and whole.

Every object has the same members, the last one `done: true` with counts and durations (nanoseconds, kept in `meta`); zero
values are left out. `generate` answers with `response`, `chat` with `message`; `thinking` is reasoning. A tool call comes
whole, arguments as an object, and `done_reason` stays "stop". An error is an object `{"error": "text"}`, also as a line.
"""

from __future__ import annotations

from typing import Any

from llmtap.core.record import Choice
from llmtap.wire.assembler import Assembler
from llmtap.wire.merge import Parts
from llmtap.wire.usage import ollama_usage
from llmtap.wire.values import string

_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


class OllamaAssembler(Assembler):
    """One choice, index 0. `text=True` for `generate`, whose empty reply is "" and not None."""

    def __init__(self, *, text: bool = False) -> None:
        super().__init__()
        self._text = text
        self._parts: Parts | None = None

    def take(self, name: str, event: dict[str, Any]) -> bool:
        if self.take_error(event):
            return False
        if self.model is None:
            self.model = string(event.get("model"))
        content = False
        message = event.get("message")
        if type(message) is dict:
            content = self._message(message, "content")
        elif "response" in event:
            content = self._message(event, "response")
        if event.get("done") is True:
            self._done(event)
        return content

    def take_whole(self, reply: dict[str, Any]) -> bool:
        content = self.take("", reply)
        if "embeddings" in reply or "embedding" in reply:
            self._done(reply)
        return content

    def choices(self) -> list[Choice]:
        return [] if self._parts is None else [self._parts.build(keep_empty=self._text)]

    def _message(self, message: dict[str, Any], member: str) -> bool:
        if self._parts is None:
            self._parts = Parts(0)
        parts = self._parts
        content = False
        text = message.get(member)
        if type(text) is str and text:
            parts.content.append(text)
            content = True
        thought = message.get("thinking")
        if type(thought) is str and thought:
            parts.reasoning.append(thought)
            content = True
        calls = message.get("tool_calls")
        if type(calls) is list:
            for call in calls:
                if type(call) is dict and parts.add_call(call, whole=True):
                    content = True
        role = message.get("role")
        if type(role) is str and role:
            parts.role = role
        return content

    def _done(self, reply: dict[str, Any]) -> None:
        self.complete = True
        self.usage = ollama_usage(reply) or self.usage
        reason = string(reply.get("done_reason"))
        if self._parts is not None and reason is not None:
            self._parts.finish_reason = reason
        for name in _DURATIONS:
            self.note(name, reply.get(name))
