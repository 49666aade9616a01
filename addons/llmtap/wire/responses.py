"""OpenAI Responses, streamed and whole.

A stream says everything twice: in deltas, and in the `output` of its last event. The last event is believed when it comes
with an output; a stream that was cut (vLLM ends it without any terminal event when its engine dies) leaves the deltas.
Output items become one choice: message text, reasoning, refusal and function calls. Finish reasons are OpenAI chat's own
(stop, tool_calls, length, content_filter, error), the status is kept in `meta`.
"""

from __future__ import annotations

from typing import Any

from llmtap.core.record import Choice
from llmtap.wire.assembler import Assembler
from llmtap.wire.merge import Call, Calls, Parts
from llmtap.wire.usage import responses_usage
from llmtap.wire.values import json_text, string

_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_REASONS = {"max_output_tokens": "length", "max_tokens": "length"}


class ResponsesAssembler(Assembler):
    """One choice, index 0."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: Parts | None = None
        self._calls: dict[Any, Call] = {}  # by output index, while streaming

    def take(self, name: str, event: dict[str, Any]) -> bool:
        kind = event.get("type")
        if type(kind) is not str:
            kind = name
        delta = event.get("delta")
        if type(delta) is str:
            return bool(delta) and self._delta(kind, event, delta)
        if kind == "response.output_item.added":
            return self._item_added(event)
        if kind == "response.function_call_arguments.done":
            call = self._call(event)
            if call is not None and not call.arguments:
                call.append(json_text(event.get("arguments")))
            return False
        response = event.get("response")
        if type(response) is dict:
            self._response(response)
        if kind in _TERMINAL:
            self.complete = True
        elif kind == "error" or "error" in event:
            self.take_error(event)
        return False

    def take_whole(self, reply: dict[str, Any]) -> bool:
        self._response(reply)
        return bool(reply.get("output"))

    def choices(self) -> list[Choice]:
        return [] if self._parts is None else [self._parts.build()]

    def _open(self) -> Parts:
        if self._parts is None:
            self._parts = Parts(0)
        return self._parts

    def _delta(self, kind: str, event: dict[str, Any], delta: str) -> bool:
        parts = self._open()
        if kind == "response.output_text.delta":
            parts.content.append(delta)
        elif kind.startswith("response.reasoning"):  # reasoning_text, and reasoning_summary_text of hosted models
            parts.reasoning.append(delta)
        elif kind == "response.refusal.delta":
            parts.refusal.append(delta)
        elif kind.endswith(("_arguments.delta", "_input.delta")):
            call = self._call(event)
            if call is not None:
                call.append(delta)
        else:  # code, audio, transcripts: model output that has no place in a choice
            return kind.endswith(".delta")
        return True

    def _key(self, event: dict[str, Any]) -> Any:
        index = event.get("output_index")
        return index if type(index) is int else None

    def _call(self, event: dict[str, Any]) -> Call | None:
        return self._calls.get(self._key(event))

    def _item_added(self, event: dict[str, Any]) -> bool:
        call = _call_of(event.get("item"))
        if call is None:
            return False
        self._calls[self._key(event)] = call
        parts = self._open()
        if parts.calls is None:
            parts.calls = Calls()
        parts.calls.append(call)
        return bool(call.name)

    def _response(self, response: dict[str, Any]) -> None:
        """The response object: of the first events (empty yet), of the last one, or the whole body."""
        self.identify(response)
        self.usage = responses_usage(response.get("usage")) or self.usage
        output = response.get("output")
        if type(output) is list and output:
            self._parts = _read_output(output)
        self.note("metrics", response.get("metrics"))
        self.note("service_tier", response.get("service_tier"))
        status = string(response.get("status"))
        if status in ("completed", "incomplete", "failed", "cancelled"):
            self.note("status", status)
            details = response.get("incomplete_details")
            reason = string(details.get("reason")) if type(details) is dict else None
            self._finish_reason(status, reason)
        if response.get("error"):
            self.take_error(response)

    def _finish_reason(self, status: str, reason: str | None) -> None:
        parts = self._open()
        if status == "completed":
            parts.finish_reason = "tool_calls" if parts.calls else "stop"
        elif status == "incomplete" and reason is not None:
            parts.finish_reason = _REASONS.get(reason, reason)
        else:
            parts.finish_reason = {"incomplete": "length", "failed": "error"}.get(status, status)


def _call_of(item: Any) -> Call | None:
    """A call in an output item: function, custom and MCP calls have a name; hosted tools (web search …) have none."""
    if type(item) is not dict or type(item.get("type")) is not str or not item["type"].endswith("_call"):
        return None
    name = string(item.get("name"))
    if name is None:
        return None
    kind = "function" if item["type"] == "function_call" else item["type"]
    call = Call(string(item.get("call_id")) or string(item.get("id")), kind, name)
    arguments = json_text(item.get("arguments", item.get("input")))
    if arguments:
        call.append(arguments)
    return call


def _texts(parts: Any, kind: str, member: str = "text") -> list[str]:
    if type(parts) is not list:
        return []
    found = (part.get(member) for part in parts if type(part) is dict and part.get("type") == kind)
    return [text for text in found if type(text) is str]


def _read_output(output: list[Any]) -> Parts:
    parts = Parts(0)
    for item in output:
        if type(item) is not dict:
            continue
        if item.get("type") == "message":
            parts.content += _texts(item.get("content"), "output_text")
            parts.refusal += _texts(item.get("content"), "refusal", "refusal")
            parts.role = string(item.get("role")) or parts.role
        elif item.get("type") == "reasoning":
            parts.reasoning += _texts(item.get("content"), "reasoning_text") or _texts(item.get("summary"), "summary_text")
        else:
            call = _call_of(item)
            if call is not None:
                if parts.calls is None:
                    parts.calls = Calls()
                parts.calls.append(call)
    return parts
