"""Chat and completions, each test one way in which servers differ; the recordings are in test_decode.py."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson
import pytest

from llmtap.core.record import Choice, Summary, ToolCall, Usage
from llmtap.wire.openai import OpenAIAssembler, plain_chat


def chunk(delta: dict[str, Any] | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more}


def stream(*events: dict[str, Any] | bytes, text: bool = False) -> Summary:
    assembler = OpenAIAssembler(text=text)
    for event in events:
        assembler.event("", event if isinstance(event, bytes) else orjson.dumps(event))
    assembler.finish()
    return assembler.summary()


def whole(reply: dict[str, Any], *, text: bool = False) -> Summary:
    assembler = OpenAIAssembler(text=text)
    assembler.whole(reply)
    assembler.finish()
    return assembler.summary()


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, finish="stop")
DONE = b"[DONE]"


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def test_which_chunks_carry_content() -> None:
    assembler = OpenAIAssembler()
    cases: list[tuple[dict[str, Any], bool]] = [
        (ROLE, False),
        (chunk({"content": "a"}), True),
        (chunk({"content": ""}), False),
        (chunk({"reasoning": "r"}), True),
        (chunk({"reasoning_content": "r"}), True),
        (chunk({"refusal": "no"}), True),
        (chunk({"content": None, "tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}), True),
        (chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}), True),
        (chunk({"tool_calls": [{"index": 0, "function": {"arguments": ""}}]}), False),
        (chunk({"function_call": {"name": "f"}}), True),
        (chunk({"content": "last"}, finish="stop"), True),
        (STOP, False),
        (chunk(usage=usage(1, 1)), False),
    ]
    for event, content in cases:
        assert assembler.event("", orjson.dumps(event)) is content, event


def test_streamed_and_whole_replies_come_out_alike() -> None:
    message = {"role": "assistant", "content": "Hello", "reasoning": "hm", "refusal": None, "tool_calls": []}
    reply = {
        "id": "chatcmpl-1",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage(3, 2),
    }
    events = (
        ROLE,
        chunk({"reasoning": "hm"}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        STOP,
        chunk(usage=usage(3, 2)),
        DONE,
    )
    assert stream(*events) == whole(reply)
    assert whole(reply).choices == [Choice(0, "assistant", "Hello", "hm", None, [], "stop")]


def test_reasoning_under_both_names_is_taken_once() -> None:
    summary = stream(chunk({"reasoning": "r", "reasoning_content": "r"}), chunk({"reasoning_content": "s"}), DONE)
    assert summary.choices[0].reasoning == "rs"


def test_content_as_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert stream(chunk({"content": parts}), DONE).choices[0].content == "ab"


def test_choices_interleave() -> None:
    summary = stream(
        chunk({"content": "b"}, index=1), chunk({"content": "a"}), chunk({"content": "c"}, index=1, finish="length"), STOP, DONE
    )
    assert [(c.index, c.content, c.finish_reason) for c in summary.choices] == [(0, "a", "stop"), (1, "bc", "length")]


def test_several_choices_in_one_chunk_count_once() -> None:
    event = chunk({"content": "a"})
    event["choices"].append({"index": 1, "delta": {"content": "b"}})
    assembler = OpenAIAssembler()
    assert assembler.event("", orjson.dumps(event)) is True
    assert [c.content for c in assembler.choices()] == ["a", "b"]


def test_text_completions() -> None:
    def piece(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
        return {"id": "cmpl-1", "model": "m", "choices": [{"index": index, "text": text, "finish_reason": finish}]}

    summary = stream(piece("a"), piece("x", index=1), piece("b", "length"), piece("", "stop", index=1), DONE, text=True)
    assert [(c.content, c.finish_reason) for c in summary.choices] == [("ab", "length"), ("x", "stop")]
    assert stream(piece("", "stop"), DONE, text=True).choices[0].content == ""


def test_a_legacy_function_call() -> None:
    expected = [ToolCall(0, None, "function", "f", '{"x":1}')]
    summary = stream(
        chunk({"function_call": {"name": "f", "arguments": '{"x"'}}), chunk({"function_call": {"arguments": ":1}"}}), DONE
    )
    assert summary.choices[0].tool_calls == expected
    message = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x":1}'}}
    assert whole({"choices": [{"index": 0, "message": message}]}).choices[0].tool_calls == expected


# ---- the public bug corpus -------------------------------------------------------------------------------------------


def test_usage_in_a_final_chunk_with_non_empty_choices() -> None:
    """transformers and others put usage on the finishing chunk."""
    summary = stream(chunk({"content": "a"}), chunk({}, finish="stop", usage=usage(9, 1)))
    assert summary.usage == Usage(9, 1, source="upstream")
    assert summary.complete  # and they never send [DONE]


def test_parallel_tool_calls_that_all_say_index_zero() -> None:
    def call(id: str, city: str) -> dict[str, Any]:
        return {"index": 0, "id": id, "type": "function", "function": {"name": "weather", "arguments": f'{{"city":"{city}"}}'}}

    summary = stream(chunk({"tool_calls": [call("a", "Paris")]}), chunk({"tool_calls": [call("b", "London")]}), DONE)
    assert [(c.index, c.id, c.arguments) for c in summary.choices[0].tool_calls] == [
        (0, "a", '{"city":"Paris"}'),
        (1, "b", '{"city":"London"}'),
    ]


def test_calls_of_a_whole_message_need_no_id_to_stay_apart() -> None:
    calls = [{"type": "function", "function": {"name": name, "arguments": ""}} for name in ("f", "g")]
    choice = whole({"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]}).choices[0]
    assert [call.name for call in choice.tool_calls] == ["f", "g"]


def test_tool_fragments_without_id() -> None:
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": part}} for part in ('{"x', '":', "1}")]
    summary = stream(chunk({"tool_calls": [first]}), *(chunk({"content": None, "tool_calls": [part]}) for part in rest), DONE)
    assert summary.choices[0].tool_calls == [ToolCall(0, "a", "function", "f", '{"x":1}')]


def test_mixed_text_and_tool_calls_keep_the_stop_reason() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}
    summary = stream(
        chunk({"content": "Let me look."}),
        chunk({"tool_calls": [call]}),
        chunk({"content": " Done."}),
        chunk({}, finish="tool_calls"),
        DONE,
    )
    (choice,) = summary.choices
    assert (choice.content, len(choice.tool_calls), choice.finish_reason) == ("Let me look. Done.", 1, "tool_calls")


def test_a_usage_chunk_that_nobody_asked_for() -> None:
    summary = stream(ROLE, chunk({"content": "a"}), STOP, chunk(usage=usage(9, 1)), DONE)
    assert summary.usage == Usage(9, 1, source="upstream")
    assert len(summary.choices) == 1


# ---- usage -----------------------------------------------------------------------------------------------------------


def test_continuous_usage_the_last_wins() -> None:
    summary = stream(*(chunk({"content": "a"}, usage=usage(9, n)) for n in range(4)))
    assert summary.usage == Usage(9, 3, source="upstream")


def test_null_usage_says_nothing() -> None:
    assert stream(chunk({"content": "a"}, usage=None), chunk(usage=None), DONE).usage == Usage(None, 1, source="estimated")


def test_zeros_never_overwrite_a_real_count() -> None:
    """Ollama's completions carry zero usage on every chunk."""
    zero = usage(0, 0)
    assert stream(chunk({"content": "a"}, usage=zero), chunk(usage=usage(9, 8)), DONE).usage == Usage(9, 8, source="upstream")
    assert stream(chunk(usage=usage(9, 8)), chunk(usage=zero), DONE).usage == Usage(9, 8, source="upstream")
    assert stream(chunk({"content": "a"}, usage=zero)).usage == Usage(None, 1, source="estimated")
    assert stream(chunk(usage=zero), DONE).usage == Usage(0, 0, source="upstream")
    assert whole({"choices": [], "usage": zero}).usage == Usage(0, 0, source="upstream")


def test_token_ids_are_counted_when_they_are_there() -> None:
    events = [chunk({"content": "a"}), chunk({"content": "b"}), STOP]
    for event, ids in zip(events, ([1, 2], [3], [4]), strict=True):
        event["choices"][0]["token_ids"] = ids
    assert stream(*events, DONE).usage == Usage(None, 4, source="estimated")


# ---- ends and errors -------------------------------------------------------------------------------------------------


def test_a_cut_stream_is_not_complete() -> None:
    summary = stream(ROLE, chunk({"content": "a"}))
    assert not summary.complete
    assert summary.choices[0].content == "a"
    assert not stream(chunk({"content": "a"}, finish="stop"), chunk({"content": "b"}, index=1)).complete


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"error": {"message": "m", "type": "InternalServerError", "param": None, "code": 500}}, ("InternalServerError", "m")),
        ({"error": "m"}, ("error", "m")),
        ({"detail": "m"}, ("error", "m")),
        ({"object": "error", "message": "m", "type": "BadRequestError"}, ("BadRequestError", "m")),
    ],
)
def test_errors_in_mid_stream(event: dict[str, Any], expected: tuple[str, str]) -> None:
    summary = stream(chunk({"content": "a"}), event, DONE)
    assert (summary.error_type, summary.error_message) == expected
    assert summary.choices[0].content == "a"
    assert summary.complete
    assert not stream(chunk({"content": "a"}, finish="stop"), event).complete


def test_an_error_in_a_body_of_status_200() -> None:
    assert whole({"error": {"message": "m", "type": "t"}}).error_type == "t"


def test_nothing_is_read_after_done() -> None:
    assert stream(chunk({"content": "a"}), b" [DONE] ", chunk({"content": "b"})).choices[0].content == "a"


def test_small_extras() -> None:
    finish = chunk({}, finish="stop", system_fingerprint="fp", timings={"predicted_n": 3}, service_tier="default")
    finish["choices"][0]["stop_reason"] = "five"
    summary = stream(finish, chunk(usage=usage(1, 1), metrics={"queue_time_ms": 0.5}), DONE)
    assert summary.meta == {
        "system_fingerprint": "fp",
        "timings": {"predicted_n": 3},
        "metrics": {"queue_time_ms": 0.5},
        "service_tier": "default",
        "stop_reason": "five",
    }
    assert stream(chunk({}, system_fingerprint=None, metrics="x" * 5000), DONE).meta == {}


def test_a_surrogate_pair_cut_by_the_server() -> None:
    summary = stream(b'{"choices":[{"delta":{"content":"a\\ud83d"}}]}', b'{"choices":[{"delta":{"content":"\\ude80"}}]}', DONE)
    assert summary.choices[0].content == "a🚀"


@pytest.mark.parametrize(
    "event",
    [
        {"choices": None},
        {"choices": {"0": {}}},
        {"choices": ["x", None]},
        {"choices": [{"index": "0", "delta": []}]},
        {"choices": [{"index": [], "delta": {"content": 5, "tool_calls": {}, "role": 1, "reasoning": []}}]},
        {"choices": [{"index": -1, "message": {"tool_calls": [None, {"function": 3, "index": {}}]}, "finish_reason": 1}]},
        {
            "choices": [{"index": 1e300, "text": 1, "token_ids": 3, "stop_reason": {"a": 10**30}}],
            "usage": "x",
            "id": 3,
            "model": [],
        },
        {"id": "\ud800"},
    ],
)
def test_wrong_types_are_ignored(event: Any) -> None:
    summary = stream(chunk({"content": "a"}), json.dumps(event).encode())
    assert summary.choices[0].content == "a"
    assert orjson.dumps(summary)


# ---- the short way of plain whole replies

PLAIN: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": [], "reasoning": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": None,
        }
    ],
    "service_tier": None,
    "system_fingerprint": "vllm-0.33",
    "usage": {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None},
    "prompt_logprobs": None,
}
STRINGS: list[Any] = ["", "x", "\u00e4", "\ud800", "error", "user"]
VALUES: list[Any] = [*STRINGS, None, 0, 1, 1.5, True, [], [{}], {}, {"a": 1}, {"prompt_tokens": 0}]


def long_way(reply: dict[str, Any]) -> Summary:
    assembler = OpenAIAssembler()
    assembler.whole(reply)
    return assembler.summary()


def encoded(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode()


def test_a_plain_reply_goes_the_short_way() -> None:
    for other in (b"", b"[]", b"1", b"{", b'"x"', b"{}"):
        assert plain_chat(other) is None
    assert plain_chat(encoded(PLAIN)) == long_way(PLAIN)


def test_the_short_way_comes_to_the_same_or_is_not_taken() -> None:
    taken = 0
    places: list[tuple[str | int, ...]] = [(), ("choices", 0), ("choices", 0, "message"), ("usage",)]
    extras = ("error", "detail", "type", "object", "timings", "metrics", "text", "delta", "token_ids", "function_call", "new")
    for place in places:
        for name in (*extras, "role", "content", "refusal", "reasoning_content", "finish_reason", "stop_reason", "index", "id"):
            for value in (*VALUES, "absent"):
                reply = copy.deepcopy(PLAIN)
                inner: Any = reply
                for step in place:
                    inner = inner[step]
                inner[name] = value
                if value == "absent":
                    del inner[name]
                found = plain_chat(encoded(reply))
                if found is not None:
                    taken += 1
                    assert found == long_way(reply), (place, name, value)
    assert taken > 200


def test_the_short_way_wants_members_of_the_right_kind() -> None:
    for name in PLAIN:
        for value in VALUES:
            reply = PLAIN | {name: value}
            found = plain_chat(encoded(reply))
            assert found is None or found == long_way(reply), (name, value)
