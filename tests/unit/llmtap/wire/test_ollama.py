from __future__ import annotations

from typing import Any

import orjson
import pytest

from llmtap.core.record import Choice, Summary, ToolCall, Usage
from llmtap.wire.ollama import OllamaAssembler

COUNTS = {
    "total_duration": 5,
    "load_duration": 1,
    "prompt_eval_count": 9,
    "prompt_eval_duration": 2,
    "eval_count": 3,
    "eval_duration": 2,
}


def chat(done: bool = False, *, content: str = "", **more: Any) -> dict[str, Any]:
    message = {
        "role": "assistant",
        "content": content,
        **{key: more.pop(key) for key in ("thinking", "tool_calls") if key in more},
    }
    return {"model": "m", "created_at": "2026-11-21T01:02:16Z", "message": message, "done": done, **more}


def assemble(*lines: dict[str, Any], text: bool = False) -> tuple[Summary, list[bool]]:
    assembler = OllamaAssembler(text=text)
    content = [assembler.event("", orjson.dumps(line)) for line in lines]
    assembler.finish()
    return assembler.summary(), content


def whole(reply: dict[str, Any], *, text: bool = False) -> Summary:
    assembler = OllamaAssembler(text=text)
    assembler.whole(reply)
    return assembler.summary()


def test_chat() -> None:
    lines = [chat(thinking="hm"), chat(content="Hel"), chat(content="lo"), chat(True, done_reason="stop", **COUNTS)]
    summary, content = assemble(*lines)
    assert content == [True, True, True, False]
    assert summary.choices == [Choice(0, "assistant", "Hello", "hm", finish_reason="stop")]
    assert summary.usage == Usage(9, 3, source="upstream")
    assert summary.meta == {key: value for key, value in COUNTS.items() if key.endswith("duration")}
    assert summary.complete
    assert whole(chat(True, content="Hello", thinking="hm", done_reason="stop", **COUNTS)) == summary


def test_generate() -> None:
    def line(response: str, **more: Any) -> dict[str, Any]:
        return {"model": "m", "response": response, "done": False, **more}

    summary, content = assemble(
        line("", thinking="hm"), line("a"), line("", done=True, done_reason="length", context=[1, 2], **COUNTS), text=True
    )
    assert content == [True, True, False]
    assert summary.choices == [Choice(0, "assistant", "a", "hm", finish_reason="length")]
    assert whole(line("", done=True, done_reason="load"), text=True).choices == [Choice(0, content="", finish_reason="load")]
    assert whole(line("", done=True, done_reason="load"), text=True).usage == Usage()


def test_a_tool_call_comes_whole_and_the_reason_stays_stop() -> None:
    calls = [
        {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
        {"function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    summary, content = assemble(chat(tool_calls=calls), chat(True, done_reason="stop"))
    assert content == [True, False]
    (choice,) = summary.choices
    assert choice.tool_calls == [ToolCall(0, "a", "function", "f", '{"x":1}'), ToolCall(1, None, "function", "g", "{}")]
    assert choice.finish_reason == "stop"


def test_an_error_line() -> None:
    summary, _ = assemble(chat(content="a"), {"error": "the model runner has stopped"})
    assert (summary.error_type, summary.error_message, summary.complete) == ("error", "the model runner has stopped", False)
    assert summary.usage == Usage(None, 1, source="estimated")


def test_embeddings_keep_usage_only() -> None:
    summary = whole({"model": "m", "embeddings": [[0.5] * 100], "total_duration": 5, "load_duration": 1, "prompt_eval_count": 4})
    assert summary.usage == Usage(4, None, source="upstream")
    assert summary.choices == []
    assert summary.meta == {"total_duration": 5, "load_duration": 1}
    assert whole({"embedding": [0.5]}).complete


@pytest.mark.parametrize(
    "line", [{"message": {"content": 1, "tool_calls": [3], "thinking": []}, "done": 1}, {"response": None}, {"model": 3}, {}]
)
def test_wrong_types_are_ignored(line: dict[str, Any]) -> None:
    summary, content = assemble(line)
    assert content == [False]
    assert orjson.dumps(summary)
