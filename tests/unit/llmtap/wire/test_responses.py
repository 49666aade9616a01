from __future__ import annotations

from typing import Any

import orjson
import pytest

from llmtap.core.record import Choice, Summary, ToolCall, Usage
from llmtap.wire.responses import ResponsesAssembler


def assemble(*events: dict[str, Any]) -> tuple[Summary, list[bool]]:
    assembler = ResponsesAssembler()
    content = [assembler.event(event.get("type", ""), orjson.dumps(event)) for event in events]
    assembler.finish()
    return assembler.summary(), content


def whole(reply: dict[str, Any]) -> Summary:
    assembler = ResponsesAssembler()
    assembler.whole(reply)
    assembler.finish()
    return assembler.summary()


def event(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "sequence_number": 0, **more}


def response(status: str = "completed", output: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "resp_1", "model": "m", "object": "response", "status": status, "error": None, "output": output or [], **more}


USAGE = {
    "input_tokens": 9,
    "output_tokens": 5,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens_details": {"reasoning_tokens": 1},
}
OUTPUT = [
    {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello"}, {"type": "refusal", "refusal": "no"}],
    },
    {"type": "function_call", "id": "fc", "call_id": "call_1", "name": "f", "arguments": '{"x":1}'},
]
CHOICE = Choice(0, "assistant", "Hello", "hm", "no", [ToolCall(0, "call_1", "function", "f", '{"x":1}')], "tool_calls")
DELTAS = [
    event("created", response=response("in_progress")),
    event("output_item.added", output_index=0, item={"type": "reasoning", "id": "rs"}),
    event("reasoning_text.delta", output_index=0, delta="hm"),
    event("output_item.added", output_index=1, item={"type": "message", "role": "assistant", "content": []}),
    event("output_text.delta", output_index=1, delta="Hel"),
    event("output_text.delta", output_index=1, delta="lo"),
    event("refusal.delta", output_index=1, delta="no"),
    event(
        "output_item.added",
        output_index=2,
        item={"type": "function_call", "id": "fc", "call_id": "call_1", "name": "f", "arguments": ""},
    ),
    event("function_call_arguments.delta", output_index=2, delta='{"x"'),
    event("function_call_arguments.delta", output_index=2, delta=":1}"),
    event("function_call_arguments.done", output_index=2, arguments='{"x":1}'),
]


def test_streamed_responses_usage_and_content() -> None:
    """The usage of a streamed response is in its last event only."""
    summary, content = assemble(*DELTAS, event("completed", response=response(usage=USAGE)))
    assert summary.usage == Usage(9, 5, 8, 1, "upstream")
    assert summary.choices == [CHOICE]
    assert (summary.response_id, summary.model, summary.complete) == ("resp_1", "m", True)
    assert content == [False, False, True, False, True, True, True, True, True, True, False, False]


def test_deltas_the_last_event_and_a_whole_body_agree() -> None:
    by_deltas = assemble(*DELTAS, event("completed", response=response(usage=USAGE)))[0]
    by_output = assemble(event("completed", response=response(output=OUTPUT, usage=USAGE)))[0]
    assert by_deltas == by_output == whole(response(output=OUTPUT, usage=USAGE))


def test_a_stream_that_was_cut_leaves_its_deltas() -> None:
    summary, _ = assemble(*DELTAS[:6])
    assert not summary.complete
    assert summary.choices == [Choice(0, "assistant", "Hello", "hm")]
    assert summary.usage == Usage(None, 3, source="estimated")


@pytest.mark.parametrize(
    ("kind", "status", "more", "finish", "error"),
    [
        ("completed", "completed", {}, "stop", None),
        ("completed", "incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, "length", None),  # vLLM 0.32
        ("incomplete", "incomplete", {"incomplete_details": {"reason": "content_filter"}}, "content_filter", None),
        ("incomplete", "incomplete", {"incomplete_details": None}, "length", None),
        ("failed", "failed", {"error": {"code": "server_error", "message": "m"}}, "error", "server_error"),
        ("cancelled", "cancelled", {}, "cancelled", None),
    ],
)
def test_ends(kind: str, status: str, more: dict[str, Any], finish: str, error: str | None) -> None:
    summary, _ = assemble(event("output_text.delta", delta="a"), event(kind, response=response(status, **more)))
    assert summary.complete
    assert summary.choices[0].finish_reason == finish
    assert summary.choices[0].content == "a"
    assert summary.meta["status"] == status
    assert summary.error_type == error


@pytest.mark.parametrize(
    "error",
    [
        {"type": "error", "code": "server_error", "message": "m", "param": None},
        {"type": "error", "error": {"type": "server_error", "message": "m"}},
    ],
)
def test_an_error_event_ends_nothing(error: dict[str, Any]) -> None:
    summary, _ = assemble(*DELTAS[:6], error)
    assert (summary.error_type, summary.error_message, summary.complete) == ("server_error", "m", False)


def test_arguments_that_come_only_when_done() -> None:
    summary, _ = assemble(DELTAS[7], event("function_call_arguments.done", output_index=2, arguments='{"x":1}'))
    assert summary.choices[0].tool_calls == CHOICE.tool_calls


def test_other_calls_and_summaries() -> None:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
        {"type": "web_search_call", "id": "ws", "status": "completed"},
        {"type": "mcp_call", "id": "mcp_1", "name": "lookup", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c", "name": "run", "input": "ls"},
        "odd",
    ]
    (choice,) = whole(response(output=output)).choices
    assert choice.reasoning == "short"
    assert choice.tool_calls == [
        ToolCall(0, "mcp_1", "mcp_call", "lookup", "{}"),
        ToolCall(1, "c", "custom_tool_call", "run", "ls"),
    ]


def test_the_event_name_stands_in_for_a_missing_type() -> None:
    assembler = ResponsesAssembler()
    assert assembler.event("response.output_text.delta", b'{"delta":"a"}')
    assert not assembler.event("response.unknown", b'{"delta":"a"}')
    assert assembler.event("response.code_interpreter_call_code.delta", b'{"delta":"a"}')
    assert assembler.choices()[0].content == "a"


def test_extras_and_errors_of_whole_bodies() -> None:
    summary = whole(response(output=OUTPUT, service_tier="auto", metrics={"queue_time_ms": 1.5}))
    assert summary.meta == {"service_tier": "auto", "metrics": {"queue_time_ms": 1.5}, "status": "completed"}
    assert whole({"error": {"message": "m", "type": "t"}}).error_type == "t"


@pytest.mark.parametrize(
    "body",
    [{"output": [{"type": []}, {"type": "message", "content": [1, {"type": "output_text", "text": 2}]}]}, {"output": 1}, {}],
)
def test_wrong_types_are_ignored(body: dict[str, Any]) -> None:
    assert orjson.dumps(whole(body))
    assert orjson.dumps(
        assemble({"type": 3, "item": 4, "response": body, "output_index": []}, {"type": "response.completed", "response": body})[
            0
        ]
    )
