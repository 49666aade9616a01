"""Bugs that users of other gateways and engines reported in public, each kept from coming back here.

Every stream goes through a tee as the gateway uses it; what the client gets and what is learned are both looked at.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.record import Summary
from llmtap.exchange import Exchange
from llmtap.tee import Tee
from llmtap.wire.decode import decoder_for
from llmtap.wire.withhold import UsageFilter

SSE = "text/event-stream"
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"


def call(**fragment: Any) -> dict[str, Any]:
    """A delta with one tool-call fragment."""
    return {"tool_calls": [fragment]}


def named(type: str, **data: Any) -> bytes:
    return f"event: {type}\ndata: ".encode() + orjson.dumps({"type": type, **data}) + b"\n\n"


def through(events: list[bytes], endpoint: str = "chat", *, withhold: bool = False) -> tuple[bytes, Summary]:
    """What the client gets, and what was understood."""
    path = PATHS[endpoint]
    ex = Exchange("POST", path, ENDPOINTS[path], "openai", "127.0.0.1")
    ex.status = 200
    failures: list[int] = []
    usage_filter = UsageFilter() if withhold else None
    tee = Tee(ex, decoder_for(endpoint, SSE, 200), usage_filter, lambda: failures.append(1), time.monotonic)
    out = b""
    for event in [*events, b""]:
        given = tee(event)
        out += given if isinstance(given, bytes) else b"".join(given)
    assert not failures and ex.summary is not None
    return out, ex.summary


def calls(summary: Summary) -> list[tuple[str | None, str, str]]:
    return [(call.id, call.name, call.arguments) for call in summary.choices[0].tool_calls]


def test_usage_in_the_final_chunk_beside_a_choice() -> None:
    """The last chunk has usage and a choice that is not empty: gateways that look at `choices: []` only bill nothing."""
    events = [chunk({"role": "assistant", "content": "Hi"}), chunk({}, "stop", usage=USAGE), DONE]
    out, summary = through(events)
    assert out == b"".join(events)
    assert (summary.usage.prompt_tokens, summary.usage.completion_tokens, summary.usage.source) == (12, 7, "upstream")
    # and where usage was asked for by us, such a chunk is the client's: it has its finish reason
    out, summary = through(events, withhold=True)
    assert out == b"".join(events)
    assert summary.usage.completion_tokens == 7


def test_usage_on_every_chunk_is_not_added_up() -> None:
    """Cumulative usage on each chunk (`continuous_usage_stats`): the last one counts, not the sum (billed four times over)."""
    parts = [chunk({"content": "a"}, usage={**USAGE, "completion_tokens": n, "total_tokens": 12 + n}) for n in range(1, 8)]
    _, summary = through([*parts, chunk({}, "stop", usage=USAGE), chunk(None, usage=USAGE), DONE])
    assert (summary.usage.prompt_tokens, summary.usage.completion_tokens) == (12, 7)


def test_parallel_tool_calls_that_all_have_index_0() -> None:
    """Their ids tell them apart; merged by index they become one call with two JSON texts for arguments."""
    events = [
        chunk(call(index=0, id="a", type="function", function={"name": "weather", "arguments": '{"city":"Paris"}'})),
        chunk(call(index=0, id="b", type="function", function={"name": "weather", "arguments": '{"city":"London"}'})),
        chunk({}, "tool_calls"),
        DONE,
    ]
    out, summary = through(events)
    assert out == b"".join(events)
    assert calls(summary) == [("a", "weather", '{"city":"Paris"}'), ("b", "weather", '{"city":"London"}')]


def test_parallel_tool_calls_with_index_0_in_fragments() -> None:
    events = [
        chunk(call(index=0, id="a", function={"name": "weather", "arguments": ""})),
        chunk(call(index=0, function={"arguments": '{"city":'})),
        chunk(call(index=0, function={"arguments": '"Paris"}'})),
        chunk(call(index=0, id="b", function={"name": "time", "arguments": ""})),
        chunk(call(index=0, function={"arguments": '{"zone":"UTC"}'})),
        chunk({}, "tool_calls"),
        DONE,
    ]
    _, summary = through(events)
    assert calls(summary) == [("a", "weather", '{"city":"Paris"}'), ("b", "time", '{"zone":"UTC"}')]


def test_tool_fragments_without_an_id() -> None:
    """Only the first fragment has an id, or none at all has one."""
    for first in ("a", None):
        events = [
            chunk(call(index=0, id=first, type="function", function={"name": "weather"})),
            chunk(call(index=0, function={"arguments": '{"city":'})),
            chunk(call(index=0, function={"arguments": '"Paris"}'})),
            chunk(call(index=1, function={"name": "time", "arguments": "{}"})),
            chunk({}, "tool_calls"),
            DONE,
        ]
        _, summary = through(events)
        assert calls(summary) == [(first, "weather", '{"city":"Paris"}'), (None, "time", "{}")]


def test_text_and_a_tool_call_in_one_message() -> None:
    """Text before a tool use: both are kept, and the stop reason is the tool's, in every dialect."""
    _, summary = through(
        [
            chunk({"role": "assistant", "content": "Let me look."}),
            chunk(call(index=0, id="a", type="function", function={"name": "weather", "arguments": "{}"})),
            chunk({}, "tool_calls"),
            DONE,
        ]
    )
    assert (summary.choices[0].content, summary.choices[0].finish_reason) == ("Let me look.", "tool_calls")
    assert calls(summary) == [("a", "weather", "{}")]

    _, summary = through(
        [
            named("message_start", message={"id": "m1", "model": "m", "role": "assistant", "usage": {"input_tokens": 12}}),
            named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            named("content_block_delta", index=0, delta={"type": "text_delta", "text": "Let me look."}),
            named("content_block_stop", index=0),
            named("content_block_start", index=1, content_block={"type": "tool_use", "id": "a", "name": "weather", "input": {}}),
            named("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"city":"Paris"}'}),
            named("content_block_stop", index=1),
            named("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 7}),
            named("message_stop"),
        ],
        "messages",
    )
    assert (summary.choices[0].content, summary.choices[0].finish_reason) == ("Let me look.", "tool_calls")
    assert calls(summary) == [("a", "weather", '{"city":"Paris"}')]
    assert (summary.usage.prompt_tokens, summary.usage.completion_tokens) == (12, 7)


def test_a_client_that_hangs_up_right_after_a_function_call() -> None:
    """Agents leave as soon as they have the call; no finish reason, usage or [DONE] is ever read, and nothing may be lost."""
    events = [
        chunk({"role": "assistant", "content": None}),
        chunk(call(index=0, id="a", type="function", function={"name": "weather", "arguments": ""})),
        chunk(call(index=0, function={"arguments": '{"city":'})),
        chunk(call(index=0, function={"arguments": '"Paris"}'})),
    ]
    out, summary = through(events)
    assert out == b"".join(events)
    assert calls(summary) == [("a", "weather", '{"city":"Paris"}')]
    assert not summary.complete
    assert (summary.usage.completion_tokens, summary.usage.source) == (3, "estimated")

    legacy = [chunk({"function_call": {"name": "weather"}}), chunk({"function_call": {"arguments": '{"city":"Paris"}'}})]
    _, summary = through(legacy)
    assert calls(summary) == [(None, "weather", '{"city":"Paris"}')]


def test_usage_of_a_streamed_response() -> None:
    """The Responses API tells usage in its last event only, under other names."""
    usage = {"input_tokens": 12, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 4}, "total_tokens": 19}
    response = {"id": "r1", "model": "m", "status": "completed", "output": [], "usage": None}
    events = [
        named("response.created", response={**response, "status": "in_progress"}),
        named("response.output_text.delta", delta="Hi", output_index=0),
        named("response.completed", response={**response, "usage": usage}),
    ]
    out, summary = through(events, "responses")
    assert out == b"".join(events)
    assert (summary.usage.prompt_tokens, summary.usage.completion_tokens, summary.usage.cached_tokens) == (12, 7, 4)
    assert summary.complete


def test_a_client_that_asked_for_no_usage_sees_no_usage_chunk() -> None:
    """Clients index `choices[0]` of every chunk, and fail on the extra chunk whose choices are empty."""
    events = [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hi"}), chunk({}, "stop")]
    out, summary = through([*events, chunk(None, usage=USAGE), DONE], withhold=True)
    assert out == b"".join([*events, DONE])
    assert (summary.usage.prompt_tokens, summary.usage.completion_tokens) == (12, 7)


def test_zero_usage_beside_content_is_no_count() -> None:
    """Ollama's OpenAI side puts zeros on every chunk of a completions stream: they must not be billed, nor shown."""
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    head = {"id": "c1", "object": "text_completion", "model": "m"}
    words = [
        b"data: " + orjson.dumps({**head, "choices": [{"index": 0, "text": t}], "usage": zeros}) + b"\n\n" for t in ("a", "b")
    ]
    out, summary = through(words, withhold=True)  # and cut there
    assert b"usage" not in out
    assert (summary.usage.completion_tokens, summary.usage.source) == (2, "estimated")
