"""The content view: every dialect's request, streamed and whole replies, and never a failure for odd bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import contentviews, http
from mitmproxy.test import tflow

from llmtap.transcript import TranscriptContentview, register, request_text

VIEW = TranscriptContentview()


def flow_of(path: str, request: bytes, response: bytes = b"", content_type: str = "application/json") -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.request = http.Request.make("POST", "http://h" + path, request, {"content-type": "application/json"})
    flow.response = http.Response.make(200, response, {"content-type": content_type})
    return flow


def shown(flow: http.HTTPFlow, message: http.Message) -> contentviews.ContentviewResult:
    register()
    return contentviews.prettify_message(message, flow)


def test_a_chat_request() -> None:
    body = {
        "model": "m",
        "stream": True,
        "temperature": 0.5,
        "messages": [
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "u"}}],
            },
            {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": '{"a":1}'}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        ],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    }
    flow = flow_of("/v1/chat/completions", json.dumps(body).encode())
    assert flow.request is not None
    result = shown(flow, flow.request)
    assert result.view_name == "LLM"
    assert result.text == (
        "model m, stream, temperature 0.5\n\n── system\nbe brief\n\n"
        '── user\nwhat is this?\n{"type": "image_url", "image_url": {"url": "u"}}\n\n'
        '── assistant\n→ look({"a":1})\n\n── tool c1\na cat\n\n── tools\nlook'
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"model": "m", "prompt": "once"}, "model m\n\n── prompt\nonce"),
        ({"input": "hello", "instructions": "be kind"}, "── instructions\nbe kind\n\n── user\nhello"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "42"}]},
            "── function_call_output c\n42",
        ),
        (
            {
                "system": [{"type": "text", "text": "s"}],
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": 1}}]},
                    {"role": "user", "content": [{"type": "tool_result", "content": "ok"}]},
                ],
                "tools": [{"name": "f"}],
            },
            '── system\ns\n\n── assistant\n→ f({"x": 1})\n\n── user\n← ok\n\n── tools\nf',
        ),
    ],
)
def test_other_dialects(body: dict[str, Any], text: str) -> None:
    assert request_text(body) == text


def test_a_streamed_reply_is_merged() -> None:
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "Hel"}, {"content": "lo"}, {}]
    events = [
        {"id": "1", "model": "m", "choices": [{"index": 0, "delta": d, "finish_reason": None if d else "stop"}]} for d in deltas
    ]
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    flow = flow_of("/v1/chat/completions", b"{}", stream + b"data: [DONE]\n\n", "text/event-stream")
    assert flow.response is not None
    text = shown(flow, flow.response).text
    assert "── reasoning\nhm" in text and "── assistant (stop)\nHello" in text and "not complete" not in text
    flow.response.raw_content = stream[: len(stream) // 2]
    assert "not complete" in shown(flow, flow.response).text


def test_a_whole_reply_with_tools() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}
    body = {
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    flow = flow_of("/v1/chat/completions", b"{}", json.dumps(body).encode())
    assert flow.response is not None
    assert shown(flow, flow.response).text == "model m, 3 prompt + 4 completion tokens\n\n── assistant (tool_calls)\n→ f({})"


def test_an_error_reply() -> None:
    flow = flow_of("/v1/chat/completions", b"{}", b'{"error":{"message":"no such model","type":"NotFoundError"}}')
    assert flow.response is not None
    flow.response.status_code = 404
    assert "no such model" in shown(flow, flow.response).text


def test_other_traffic_keeps_mitmproxys_views() -> None:
    flow = flow_of("/somewhere", b'{"a":1}', b'{"b":1}')
    assert flow.request is not None and flow.response is not None
    assert shown(flow, flow.request).view_name == "JSON" and shown(flow, flow.response).view_name == "JSON"


def test_it_is_registered_once() -> None:
    register()
    first = contentviews.registry["llm"]
    register()
    assert contentviews.registry["llm"] is first


_NAMES = [
    "role",
    "content",
    "messages",
    "input",
    "tools",
    "tool_calls",
    "function",
    "text",
    "type",
    "name",
    "prompt",
    "system",
    "output",
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=6))
def test_any_request_is_shown_somehow(body: dict[str, Any]) -> None:
    assert isinstance(request_text(body), str)


@given(st.binary(max_size=60), st.sampled_from(["text/event-stream", "application/json", "audio/wav"]))
def test_any_reply_is_text_or_a_value_error(data: bytes, content_type: str) -> None:
    flow = flow_of("/v1/chat/completions", b"{}", data, content_type)
    metadata = contentviews.Metadata(flow=flow, http_message=flow.response)
    try:
        assert isinstance(VIEW.prettify(data, metadata), str)
    except ValueError:
        assert content_type == "audio/wav"
