"""The chat template: messages and tools to the one text the model sees, in the ChatML form of the Qwen family."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import VllmError
from .requests import Message, Tool
from .tools import message_text

_TOOLS_INTRO = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within tool call tags:
{{"name": <function-name>, "arguments": <args-json-object>}}"""


def render(messages: Sequence[Message], tools: Sequence[Tool] | None = None, *, generation_prompt: bool = True) -> str:
    """The prompt. Raises VllmError for a conversation without messages."""
    if not messages:
        raise VllmError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    turns = list(messages)
    parts: list[str] = []
    if tools:
        system = message_text(turns.pop(0)) + "\n\n" if turns[0].role == "system" else ""
        signatures = (json.dumps(tool.model_dump(exclude_unset=True), ensure_ascii=False) for tool in tools)
        parts.append(f"<|im_start|>system\n{system}{_TOOLS_INTRO.format(chr(10).join(signatures))}<|im_end|>\n")
    for turn in turns:
        calls = "".join(_call(call) for call in turn.tool_calls or ())
        parts.append(f"<|im_start|>{turn.role}\n{message_text(turn)}{calls}<|im_end|>\n")
    if generation_prompt:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)


def _call(call: Mapping[str, Any]) -> str:
    return f"\n<tool_call>\n{json.dumps(call.get('function'), ensure_ascii=False)}\n</tool_call>"
