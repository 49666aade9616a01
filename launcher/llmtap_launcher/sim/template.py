"""The chat template: messages and tools to the one text the model sees, in the ChatML form of the Qwen family."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import VllmError
from .tools import message_text

_TOOLS_INTRO = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within tool call tags:
{{"name": <function-name>, "arguments": <args-json-object>}}"""


def render(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, *, generation_prompt: bool = True
) -> str:
    """The prompt. Raises VllmError for a conversation without messages."""
    if not messages:
        raise VllmError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    turns = list(messages)
    parts: list[str] = []
    if tools:
        system = ""
        if turns[0].get("role") == "system":
            system = message_text(turns.pop(0)) + "\n\n"
        intro = _TOOLS_INTRO.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        parts.append(f"<|im_start|>system\n{system}{intro}<|im_end|>\n")
    for turn in turns:
        calls = "".join(_call(call) for call in turn.get("tool_calls") or () if isinstance(call, Mapping))
        parts.append(f"<|im_start|>{turn.get('role', 'user')}\n{message_text(turn)}{calls}<|im_end|>\n")
    if generation_prompt:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function") or {}
    return f'\n<tool_call>\n{{"name": "{function.get("name")}", "arguments": {function.get("arguments")}}}\n</tool_call>'
