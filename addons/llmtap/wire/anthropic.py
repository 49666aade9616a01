"""Anthropic messages, streamed and whole, as vLLM, Ollama and Anthropic write them.

Content blocks become one choice: text, thinking (as reasoning) and tool uses. Finish reasons are OpenAI's names (stop,
length, tool_calls, content_filter) so that one filter serves all dialects; Anthropic's own is kept in `meta.stop_reason`.
Usage comes in pieces (input at the start, output at the end; some servers give better input counts at the end), each count's
last value wins; `prompt_tokens` includes cached tokens, see `usage.anthropic_usage`.
"""

from __future__ import annotations

from typing import Any

from llmtap.core.record import Choice
from llmtap.wire.assembler import Assembler
from llmtap.wire.merge import Call, Calls, Parts
from llmtap.wire.shapes import Slot
from llmtap.wire.usage import anthropic_usage
from llmtap.wire.values import json_text, string

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class AnthropicAssembler(Assembler):
    """One choice, index 0."""

    repeats = True

    def __init__(self) -> None:
        super().__init__()
        self._parts: Parts | None = None
        self._tools: dict[int, Call] = {}  # by block index
        self._inputs: dict[int, Any] = {}  # the input a tool block opened with, used when no fragments follow
        self._raw_usage: dict[str, Any] = {}
        self._final_usage = False

    def take(self, name: str, event: dict[str, Any]) -> bool:
        kind = event.get("type")
        if type(kind) is not str:
            kind = name
        if kind == "content_block_delta":
            return self._delta(event.get("delta"), event.get("index"))
        if kind == "content_block_start":
            return self._block(event.get("content_block"), event.get("index"))
        if kind == "content_block_stop":
            self._close_tool(event.get("index"))
        elif kind == "message_start":
            message = event.get("message")
            if type(message) is dict:
                self._message(message)
        elif kind == "message_delta":
            delta = event.get("delta")
            if type(delta) is dict:
                self._stop(delta)
            usage = event.get("usage")
            self._usage(usage)
            self._final_usage = self._final_usage or (type(usage) is dict and usage.get("output_tokens") is not None)
        elif kind == "message_stop":
            self.complete = True
        elif kind == "error" or "error" in event:
            self.take_error(event)
        return False

    def take_whole(self, reply: dict[str, Any]) -> bool:
        if self.take_error(reply):
            return False
        content = False
        self._message(reply)
        blocks = reply.get("content")
        for index, block in enumerate(blocks if type(blocks) is list else []):
            content = self._block(block, index) or content
            self._close_tool(index)
        self._stop(reply)
        return content

    def finish(self) -> None:
        for index in list(self._inputs):
            self._close_tool(index)
        if self.streamed and not self._final_usage and self.content_events:
            self.estimate()  # what message_start says of output tokens is not the count of what followed

    def slot(self, name: str, event: dict[str, Any]) -> Slot | None:
        delta = event.get("delta")
        if event.get("type") != "content_block_delta" or type(delta) is not dict or not name.isascii():
            return None
        kind = delta.get("type")
        if kind == "text_delta":
            return Slot(("delta", "text"), self._open().content)
        return Slot(("delta", "thinking"), self._open().reasoning) if kind == "thinking_delta" else None

    def choices(self) -> list[Choice]:
        return [] if self._parts is None else [self._parts.build()]

    def _open(self) -> Parts:
        if self._parts is None:
            self._parts = Parts(0)
        return self._parts

    def _message(self, message: dict[str, Any]) -> None:
        self.identify(message)
        self._open().role = string(message.get("role")) or "assistant"
        self._usage(message.get("usage"))

    def _usage(self, usage: Any) -> None:
        if type(usage) is dict:
            self._raw_usage.update((name, value) for name, value in usage.items() if value is not None)
            self.usage = anthropic_usage(self._raw_usage) or self.usage

    def _stop(self, delta: dict[str, Any]) -> None:
        reason = string(delta.get("stop_reason"))
        if reason is not None:
            self._open().finish_reason = _REASONS.get(reason, reason)
            self.note("stop_reason", reason)
        self.note("stop_sequence", delta.get("stop_sequence"))

    def _block(self, block: Any, index: Any) -> bool:
        if type(block) is not dict:
            return False
        kind = block.get("type")
        parts = self._open()
        if type(kind) is str and kind.endswith("tool_use"):  # tool_use, server_tool_use, mcp_tool_use
            call = Call(string(block.get("id")), "function" if kind == "tool_use" else kind, string(block.get("name")) or "")
            if parts.calls is None:
                parts.calls = Calls()
            parts.calls.append(call)
            if type(index) is int:
                self._tools[index] = call
                self._inputs[index] = block.get("input")
            return bool(call.name)
        return self._text(parts.content, block.get("text")) or self._text(parts.reasoning, block.get("thinking"))

    def _delta(self, delta: Any, index: Any) -> bool:
        if type(delta) is not dict:
            return False
        kind = delta.get("type")
        if kind == "text_delta":
            return self._text(self._open().content, delta.get("text"))
        if kind == "thinking_delta":
            return self._text(self._open().reasoning, delta.get("thinking"))
        if kind == "input_json_delta":
            call = self._tools.get(index) if type(index) is int else None
            text = delta.get("partial_json")
            if call is not None and type(text) is str and text:
                call.append(text)
                return True
        return False  # signatures, citations

    @staticmethod
    def _text(to: list[str], text: Any) -> bool:
        if type(text) is not str or not text:
            return False
        to.append(text)
        return True

    def _close_tool(self, index: Any) -> None:
        if type(index) is int and index in self._inputs:
            given = self._inputs.pop(index)
            call = self._tools[index]
            if not call.arguments and given is not None:
                call.append(json_text(given))
