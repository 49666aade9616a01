from __future__ import annotations

from typing import Any

import orjson
import pytest

from llmtap.core.record import Choice, Summary, ToolCall, Usage
from llmtap.wire.anthropic import AnthropicAssembler


def assemble(*events: dict[str, Any]) -> tuple[Summary, list[bool]]:
    assembler = AnthropicAssembler()
    content = [assembler.event(event.get("type", ""), orjson.dumps(event)) for event in events]
    assembler.finish()
    return assembler.summary(), content


def whole(reply: dict[str, Any]) -> Summary:
    assembler = AnthropicAssembler()
    assembler.whole(reply)
    assembler.finish()
    return assembler.summary()


def start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "model": "m", "content": [], "usage": usage}}


def block(index: int, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": content}


def delta(index: int, kind: str, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **content}}


def end(reason: str, **usage: Any) -> list[dict[str, Any]]:
    return [
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]


TOOL = block(2, type="tool_use", id="toolu_1", name="f", input={})
STREAM = [
    start(input_tokens=9, output_tokens=0),
    block(0, type="thinking", thinking=""),
    delta(0, "thinking_delta", thinking="hm"),
    delta(0, "signature_delta", signature="abc"),
    {"type": "content_block_stop", "index": 0},
    {"type": "ping"},
    block(1, type="text", text=""),
    delta(1, "text_delta", text="Hel"),
    delta(1, "text_delta", text="lo"),
    {"type": "content_block_stop", "index": 1},
    TOOL,
    delta(2, "input_json_delta", partial_json=""),
    delta(2, "input_json_delta", partial_json='{"x":'),
    delta(2, "input_json_delta", partial_json="1}"),
    {"type": "content_block_stop", "index": 2},
]
CHOICE = Choice(0, "assistant", "Hello", "hm", None, [ToolCall(0, "toolu_1", "function", "f", '{"x":1}')], "tool_calls")


def test_a_stream() -> None:
    summary, content = assemble(*STREAM, *end("tool_use", output_tokens=12))
    assert summary.choices == [CHOICE]
    assert summary.usage == Usage(9, 12, source="upstream")
    assert (summary.response_id, summary.model, summary.complete) == ("msg_1", "m", True)
    assert summary.meta == {"stop_reason": "tool_use"}
    assert [index for index, one in enumerate(content) if one] == [2, 7, 8, 10, 12, 13]


def test_a_whole_message_comes_out_alike() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "abc"},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
    ]
    usage = {"input_tokens": 9, "output_tokens": 12}
    reply = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": blocks,
        "stop_reason": "tool_use",
        "usage": usage,
    }
    assert whole(reply) == assemble(*STREAM, *end("tool_use", output_tokens=12))[0]


def test_usage_in_pieces_each_count_s_last_value_wins() -> None:
    """Ollama guesses the input at the start and knows it at the end; Anthropic gives the cache counts at the start only."""
    events = [start(input_tokens=4, cache_read_input_tokens=100, output_tokens=1), delta(0, "text_delta", text="a")]
    summary, _ = assemble(*events, *end("end_turn", input_tokens=14, output_tokens=27, cache_read_input_tokens=None))
    assert summary.usage == Usage(114, 27, 100, None, "upstream")


def test_an_aborted_stream_estimates_what_came_after_the_start() -> None:
    summary, _ = assemble(*STREAM[:9])
    assert summary.usage == Usage(9, 3, source="estimated")
    assert not summary.complete
    assert assemble(start(input_tokens=9, output_tokens=0))[0].usage == Usage(9, 0, source="upstream")


def test_an_error_event() -> None:
    summary, _ = assemble(*STREAM[:9], {"type": "error", "error": {"type": "overloaded_error", "message": "m"}})
    assert (summary.error_type, summary.error_message, summary.complete) == ("overloaded_error", "m", False)
    assert summary.choices[0].content == "Hello"
    assert whole({"type": "error", "error": {"type": "api_error", "message": "m"}}).error_type == "api_error"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "something_new"),
    ],
)
def test_finish_reasons_have_openai_s_names(reason: str, finish: str) -> None:
    """Text mixed with tools: the reason is the server's, whatever the last block was."""
    summary, _ = assemble(*STREAM, delta(1, "text_delta", text="!"), *end(reason))
    assert summary.choices[0].finish_reason == finish
    assert summary.meta["stop_reason"] == reason


def test_tools_without_arguments_and_server_tools() -> None:
    summary, _ = assemble(
        block(0, type="tool_use", id="a", name="f", input={}),
        {"type": "content_block_stop", "index": 0},
        block(1, type="server_tool_use", id="b", name="web_search", input={"q": "x"}),
        block(2, type="web_search_tool_result", content=[]),
        block(3, type="text", text="whole at once"),
    )
    (choice,) = summary.choices
    assert choice.tool_calls == [
        ToolCall(0, "a", "function", "f", "{}"),
        ToolCall(1, "b", "server_tool_use", "web_search", '{"q":"x"}'),
    ]
    assert choice.content == "whole at once"


def test_the_event_name_stands_in_for_a_missing_type() -> None:
    assembler = AnthropicAssembler()
    assert assembler.event("content_block_delta", b'{"index":0,"delta":{"type":"text_delta","text":"a"}}')
    assert not assembler.event("message_stop", b"{}")
    assert assembler.complete


@pytest.mark.parametrize(
    "event",
    [
        {"type": "message_start", "message": 1},
        {"type": "message_start", "message": {"role": 3, "usage": []}},
        {"type": "content_block_start", "index": "x", "content_block": {"type": "tool_use", "name": 3}},
        {"type": "content_block_start", "content_block": None},
        {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "x"}, "index": []},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 3}},
        {"type": "content_block_stop", "index": {}},
        {"type": "message_delta", "delta": [], "usage": {"output_tokens": "x"}},
        {"type": None},
    ],
)
def test_wrong_types_are_ignored(event: dict[str, Any]) -> None:
    summary, content = assemble(event)
    assert content == [False]
    assert orjson.dumps(summary)
