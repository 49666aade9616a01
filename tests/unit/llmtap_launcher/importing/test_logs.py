"""Lines of other tools' logs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtap_launcher.importing.entries import Malformed
from llmtap_launcher.importing.logs import entry_of, is_batch_request

REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1763717400,
    "model": "served",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hey"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
HI = [{"role": "user", "content": "hi"}]
#: the request log of an in-process middleware
LOG = {
    "timestamp": "2025-11-21T09:30:00.250000",
    "request_id": "req-1",
    "model": "qwen",
    "messages": HI,
    "response": REPLY,
    "parameters": {"temperature": 0.7, "max_tokens": 100, "tools": [{"type": "function", "function": {"name": "f"}}]},
    "latency_ms": 234.56,
    "error": None,
    "metadata": {"user": "u1"},
}
LITELLM = {
    "id": "chatcmpl-9",
    "trace_id": "t1",
    "call_type": "acompletion",
    "stream": True,
    "status": "success",
    "startTime": 1763717400.0,
    "endTime": 1763717402.5,
    "completionStartTime": 1763717400.5,
    "model": "openai/qwen",
    "model_group": "qwen",
    "api_base": "http://10.0.0.5:8000/v1",
    "metadata": {"user_api_key_alias": "team-a"},
    "cache_hit": None,
    "request_tags": ["eval"],
    "end_user": "u7",
    "requester_ip_address": "10.0.0.9",
    "messages": HI,
    "response": REPLY,
    "error_str": None,
    "model_parameters": {"temperature": 0.2, "stream": True},
}


def test_a_request_log(stored: Any) -> None:
    row, asked, said = stored(entry_of(LOG, {}))
    assert (asked, said["content"], row["endpoint"]) == (HI, "hey", "chat")
    assert (row["started_at"], row["duration_ms"], row["temperature"], row["max_tokens"]) == (
        "2025-11-21T09:30:00.250Z",
        234.56,
        0.7,
        100,
    )
    assert (row["model"], row["model_requested"], row["request_id"]) == ("served", "qwen", "req-1")
    assert (row["metadata_json"], row["prompt_tokens"]) == ('{"user":"u1"}', 3)
    assert row["tools_hash"] is not None


def test_a_failed_request(stored: Any) -> None:
    row, asked, said = stored(entry_of(LOG | {"response": None, "error": "timed out"}, {}))
    assert (row["outcome"], row["error_message"], row["status"], asked, said) == ("upstream_error", "timed out", None, HI, None)


@pytest.mark.parametrize("prompt", ["Once", ["Once"], [{"role": "user", "content": "Once"}]])
def test_a_text_completion(stored: Any, prompt: Any) -> None:
    reply = {"object": "text_completion", "model": "m", "choices": [{"index": 0, "text": " upon", "finish_reason": "stop"}]}
    row, asked, said = stored(entry_of(LOG | {"messages": prompt, "response": reply}, {}))
    assert (row["endpoint"], asked[0]["content"], said["content"]) == ("completions", "Once", " upon")


def test_a_reply_that_is_only_text(stored: Any) -> None:
    _, _, said = stored(entry_of(LOG | {"response": "hey there"}, {}))
    assert said["content"] == "hey there"


def test_litellm(stored: Any) -> None:
    row, asked, said = stored(entry_of(LITELLM, {}))
    assert (asked, said["content"]) == (HI, "hey")
    assert (row["key_name"], row["tags"], row["model_requested"], row["client_ip"]) == ("team-a", '["eval"]', "qwen", "10.0.0.9")
    assert (row["duration_ms"], row["ttft_ms"], row["stream"], row["outcome"]) == (2500.0, 500.0, 1, "ok")
    failed = LITELLM | {"status": "failure", "response": None, "error_str": "boom", "error_information": {"error_code": "429"}}
    row, _, said = stored(entry_of(failed | {"id": "other"}, {}))
    assert (row["outcome"], row["error_message"], row["status"], said) == ("upstream_error", "boom", 429, None)
    row, _, _ = stored(entry_of(LITELLM | {"id": "third", "cache_hit": "True"}, {}))
    assert (row["outcome"], row["cache"]) == ("cached", "hit")


def test_litellm_spend_logs_have_json_in_strings(stored: Any) -> None:
    row = {
        "request_id": "r1",
        "call_type": "acompletion",
        "startTime": "2025-11-21T09:30:00+00:00",
        "endTime": "2025-11-21T09:30:01+00:00",
        "model": "qwen",
        "messages": "{}",
        "response": json.dumps(REPLY),
        "metadata": json.dumps({"user_api_key_alias": "team-b"}),
        "request_tags": '["a"]',
        "proxy_server_request": json.dumps({"model": "qwen", "messages": HI, "temperature": 1}),
    }
    found, asked, said = stored(entry_of(row | {"messages": None}, {}))
    assert (asked, said["content"], found["key_name"], found["temperature"]) == (HI, "hey", "team-b", 1.0)


def test_embeddings_of_litellm(stored: Any) -> None:
    row, asked, _ = stored(entry_of(LITELLM | {"call_type": "aembedding", "messages": "text", "response": None}, {}))
    assert (row["endpoint"], asked) == ("embeddings", [])


def test_a_batch(stored: Any) -> None:
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": HI}}
    result = {"id": "b1", "custom_id": "a", "response": {"status_code": 200, "request_id": "x", "body": REPLY}, "error": None}
    assert is_batch_request(request) and not is_batch_request(result)
    row, asked, said = stored(entry_of(result, {"a": request}))
    assert (asked, said["content"], row["started_at"], row["request_id"]) == (HI, "hey", "2025-11-21T09:30:00.000Z", "a")
    with pytest.raises(Malformed, match="input file"):
        entry_of(result, {})


@pytest.mark.parametrize(
    "line",
    [
        3,
        {},
        {"messages": HI},
        LOG | {"timestamp": None},
        LOG | {"messages": 3},
        LOG | {"messages": [3]},
        LITELLM | {"startTime": "never"},
        LITELLM | {"messages": None},
    ],
)
def test_what_is_no_line_of_a_log(line: Any) -> None:
    with pytest.raises(Malformed):
        entry_of(line, {})
