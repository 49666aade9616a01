"""Deltas merged: the parts of one choice, and tool calls put together from their fragments.

How servers differ in tool-call fragments, and what is made of each:
- vLLM, OpenAI: `index` names the call, `id` and `name` come once, then argument fragments follow without them;
- some send every parallel call with index 0 and only different ids: another id starts another call;
- some leave out index or id, or repeat id and name on every fragment: they continue the call in hand;
- in a whole message, and always with Ollama, every entry is a call of its own, its arguments text or an object.
"""

from __future__ import annotations

from typing import Any

import orjson

from llmtap.core.record import Choice, ToolCall
from llmtap.wire.values import clean, json_text, string

#: beyond this many characters, arguments are no longer tested for being whole
_WHOLE_LIMIT = 16 * 1024


class Call:
    """One tool call in the making."""

    __slots__ = ("_size", "_tested", "arguments", "id", "name", "type")

    def __init__(self, id: str | None = None, type: str = "function", name: str = "") -> None:
        self.id = id
        self.type = type
        self.name = name
        self.arguments: list[str] = []
        self._size = 0
        self._tested = 0

    def append(self, text: str) -> None:
        self.arguments.append(text)
        self._size += len(text)

    def whole(self) -> bool:
        """The arguments so far are a complete JSON object. Tested once for each state, so the cost stays bounded."""
        if not self.arguments or self._size > _WHOLE_LIMIT or self._tested == self._size:
            return False
        if not self.arguments[-1].rstrip().endswith("}"):
            return False
        self._tested = self._size
        try:
            return type(orjson.loads("".join(self.arguments))) is dict
        except orjson.JSONDecodeError:
            return False

    def build(self, index: int) -> ToolCall:
        return ToolCall(index, self.id, self.type, clean(self.name), clean("".join(self.arguments)))


class Calls:
    """The tool calls of one choice, in the order in which they began."""

    __slots__ = ("_by_index", "_calls")

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._by_index: dict[int, Call] = {}

    def add(self, fragment: dict[str, Any], *, whole: bool = False) -> bool:
        """Takes in one fragment `{index, id, type, function: {name, arguments}}`. True when it says anything.

        `whole`: it is no fragment but a call of its own."""
        function = fragment.get("function") or fragment.get("custom")
        if type(function) is not dict:
            function = {}
        index = fragment.get("index")
        if type(index) is not int:
            index = None
        id = string(fragment.get("id")) or None
        name = string(function.get("name")) or ""
        arguments = json_text(function.get("arguments", function.get("input")))

        call = self._calls[-1] if index is None and self._calls else self._by_index.get(index) if index is not None else None
        if call is None or whole or self._begins(call, id, name):
            call = Call(id, string(fragment.get("type")) or "function", name)
            self._calls.append(call)
            if index is not None:
                self._by_index[index] = call
        else:
            call.id = call.id or id
            if name and name != call.name and not call.arguments:
                call.name += name  # a name in pieces
        if arguments:
            call.append(arguments)
        return bool(name or arguments)

    @staticmethod
    def _begins(call: Call, id: str | None, name: str) -> bool:
        if id is not None and call.id is not None:
            return id != call.id
        # no id to tell by: a name after whole arguments is the next call
        return id is None and bool(name) and call.whole()

    def append(self, call: Call) -> None:
        self._calls.append(call)

    def __len__(self) -> int:
        return len(self._calls)

    def build(self) -> list[ToolCall]:
        return [call.build(position) for position, call in enumerate(self._calls)]


class Parts:
    """One choice in the making."""

    __slots__ = ("calls", "content", "finish_reason", "index", "legacy_call", "reasoning", "refusal", "role")

    def __init__(self, index: int) -> None:
        self.index = index
        self.role = "assistant"
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: Calls | None = None
        self.legacy_call: Call | None = None
        self.finish_reason: str | None = None

    def add_call(self, fragment: dict[str, Any], *, whole: bool = False) -> bool:
        if self.calls is None:
            self.calls = Calls()
        return self.calls.add(fragment, whole=whole)

    def build(self, *, keep_empty: bool = False) -> Choice:
        """The choice. Empty content is None, so that streamed and whole replies come out alike, unless `keep_empty`."""
        content = clean("".join(self.content))
        calls = self.calls.build() if self.calls else []
        if self.legacy_call is not None:
            calls.append(self.legacy_call.build(len(calls)))
        return Choice(
            index=self.index,
            role=clean(self.role),
            content=content if content or keep_empty else None,
            reasoning=clean("".join(self.reasoning)) or None,
            refusal=clean("".join(self.refusal)) or None,
            tool_calls=calls,
            finish_reason=self.finish_reason,
        )
