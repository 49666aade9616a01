"""Every API's requests read as messages; what a server said and a client sends back is the same message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.store.canonical import body_of
from llmtap_launcher.store.messages import dialect, from_choice, from_request

TOOLS = [{"type": "function", "function": {"name": "weather"}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}


def read(endpoint: str, request: dict[str, Any], path: str = "/") -> list[dict[str, Any]]:
    messages = from_request(dialect(endpoint, path), request).messages
    assert messages is not None
    return [{k: v for k, v in m.items() if v not in (None, "", [])} for m in messages]


def test_chat_keeps_its_messages_and_the_other_parameters() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    prompt = from_request("chat", {"model": "m", "messages": messages, "tools": TOOLS, "temperature": 0.5, "metadata": None})
    assert prompt.messages == messages
    assert prompt.tools == TOOLS
    assert prompt.params == {"model": "m", "temperature": 0.5, "metadata": None}


@pytest.mark.parametrize(
    ("prompt", "content"),
    [
        ("once", "once"),
        (["once", "twice"], [{"type": "text", "text": "once"}, {"type": "text", "text": "twice"}]),
        ([1, 2, 3], [{"type": "token_ids", "token_ids": [1, 2, 3]}]),
        ([[1], [2]], [{"type": "token_ids", "token_ids": [1]}, {"type": "token_ids", "token_ids": [2]}]),
    ],
)
def test_a_completion_prompt_is_one_user_message(prompt: Any, content: Any) -> None:
    assert read("completions", {"prompt": prompt}) == [{"role": "user", "content": content}]


def test_one_prompt_in_a_list_is_that_prompt() -> None:
    one, other = (from_request("completions", {"prompt": p}).messages for p in ("once", ["once"]))
    assert one is not None and other is not None
    assert body_of(one[0]).hash == body_of(other[0]).hash


def test_what_cannot_be_read_stays_in_the_parameters() -> None:
    for request in ({"messages": "hi"}, {"messages": [1]}, {}):
        prompt = from_request("chat", request)
        assert prompt.messages is None
        assert prompt.params == request
    assert from_request("completions", {"prompt": []}).messages is None
    assert from_request("completions", {"prompt": [1, "a"]}).messages is None


def test_anthropic_tool_results_and_thinking() -> None:
    messages = read(
        "messages",
        {
            "system": [{"type": "text", "text": "be brief"}],
            "messages": [
                {"role": "user", "content": "weather?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "x"},
                        {"type": "text", "text": "let me "},
                        {"type": "text", "text": "see"},
                        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}, {"type": "text", "text": "so?"}],
                },
            ],
        },
    )
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[2]["content"] == "let me see"
    assert messages[2]["reasoning"] == "hm"
    assert messages[3] == {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    assert messages[4]["content"] == [{"type": "text", "text": "so?"}]
    reply = from_choice(
        {"content": "let me see", "tool_calls": [{"id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}]}
    )
    assert reply is not None
    assert body_of(messages[2]).hash == body_of(reply).hash
    only_results = read("messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]}]})
    assert only_results == [{"role": "tool", "tool_call_id": "c"}]


def test_responses_items_of_one_reply_are_one_message() -> None:
    messages = read(
        "responses",
        {
            "instructions": "be brief",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "see", "annotations": []}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Oslo"}', "id": "fc"},
                {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                {"type": "input_image", "image_url": "x"},
            ],
        },
    )
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "user"]
    reply = from_choice(
        {
            "content": "see",
            "tool_calls": [
                {"id": "c1", "name": "weather", "arguments": '{"city":"Oslo"}'},
                {"id": "c2", "name": "weather", "arguments": "{}"},
            ],
        }
    )
    assert reply is not None
    assert body_of(messages[2]).hash == body_of(reply).hash
    assert read("responses", {"input": "hi"}) == [{"role": "user", "content": "hi"}]
    alone = read("responses", {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]})
    assert alone[0]["role"] == "assistant"
    for unreadable in (None, 5, ["x"]):
        assert from_request("responses", {"input": unreadable}).messages is None


def test_ollama() -> None:
    assert dialect("other", "/api/chat") == "ollama_chat"
    assert dialect(None, "/proxy/11434/api/generate") == "ollama_generate"
    messages = read(
        "ollama_chat",
        {
            "messages": [
                {"role": "user", "content": "what?", "images": ["aGk="]},
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "hm",
                    "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
                },
                {"role": "tool", "content": "r", "tool_name": "f"},
            ]
        },
    )
    assert messages[0]["content"] == [{"type": "text", "text": "what?"}, {"type": "image", "data": "aGk="}]
    assert messages[2] == {"role": "tool", "content": "r", "name": "f"}
    reply = from_choice({"reasoning": "hm", "tool_calls": [{"name": "f", "arguments": '{"a":1}'}]})
    assert reply is not None
    assert body_of(messages[1]).hash == body_of(reply).hash
    assert read("ollama_generate", {"prompt": "p", "system": "s"}) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "p"},
    ]
    assert from_request("ollama_generate", {"model": "m", "prompt": ""}).messages is None, "that loads a model"
    assert from_request("ollama_chat", {"messages": ["x"]}).messages is None


def test_other_endpoints_keep_parameters_not_payload() -> None:
    prompt = from_request(dialect("embeddings", "/v1/embeddings"), {"model": "e", "input": ["secret"], "dimensions": 5})
    assert prompt.messages is None
    assert prompt.params == {"model": "e", "dimensions": 5}


def test_a_reply_that_the_client_sends_back_is_the_same_message() -> None:
    said = from_choice(
        {
            "index": 0,
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "refusal": None,
            "tool_calls": [{"index": 0, "id": "c1", "type": "function", "name": "weather", "arguments": '{"city":"Oslo"}'}],
            "finish_reason": "tool_calls",
        }
    )
    assert said is not None
    assert said["tool_calls"] == [CALL]
    assert body_of(said).hash == body_of({"role": "assistant", "content": "", "tool_calls": [CALL]}).hash


def test_silence_is_a_message_only_when_the_model_ended_it() -> None:
    assert from_choice({"content": None}) is None
    assert from_choice({"content": "", "finish_reason": None}) is None
    assert from_choice({"content": "", "finish_reason": "stop"}) is not None
    assert from_choice({"refusal": "no"}) is not None


anything = st.recursive(
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=5)
    | st.sampled_from(["text", "tool_use", "tool_result", "function_call", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "text", "images", "tool_calls", "input", "messages", "prompt", "call_id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@pytest.mark.parametrize("kind", ["chat", "completions", "messages", "responses", "ollama_chat", "ollama_generate"])
@given(
    fields=st.dictionaries(
        st.sampled_from(["messages", "prompt", "input", "system", "instructions", "tools", "images"]), anything
    )
)
def test_any_request_is_read_or_kept(kind: str, fields: dict[str, Any]) -> None:
    prompt = from_request(kind, fields)
    if prompt.messages is None:
        assert prompt.params == fields
    else:
        assert all(body_of(m).hash for m in prompt.messages)
