"""A reply in the other form says the same: recordings of real servers, and properties."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.record import Summary
from llmtap.wire.decode import decoder_for
from llmtap.wire.rebuild import to_stream, to_whole
from support import recordings

ENDPOINTS = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}


def understood(endpoint: str, body: bytes, content_type: str) -> Summary:
    decoder = decoder_for(endpoint, content_type, 200)
    decoder.feed(body)
    decoder.close()
    return decoder.summary


def same(endpoint: str, stream: bytes, whole: bytes) -> None:
    a = understood(endpoint, stream, "text/event-stream")
    b = understood(endpoint, whole, "application/json")
    assert a.complete and b.complete
    assert (a.model, a.response_id) == (b.model, b.response_id)
    if a.usage.source == "upstream" or b.usage.source == "upstream":  # else it is estimated, from a stream only
        assert a.usage == b.usage
    assert [(c.index, c.role, c.content or "", c.reasoning, c.refusal, c.tool_calls, c.finish_reason) for c in a.choices] == [
        (c.index, c.role, c.content or "", c.reasoning, c.refusal, c.tool_calls, c.finish_reason) for c in b.choices
    ]


def recorded() -> list[tuple[str, str, bool]]:
    found = []
    for name in recordings.names():
        recording = recordings.load(name)
        endpoint = ENDPOINTS.get(recording.path)
        if endpoint and recording.status == 200 and recording.complete and recording.content_type:
            found.append((name, endpoint, recording.content_type.startswith("text/event-stream")))
    return found


RECORDED = recorded()


def test_there_are_recordings_of_all_kinds() -> None:
    assert {(endpoint, streamed) for _, endpoint, streamed in RECORDED} == {
        (endpoint, streamed) for endpoint in ENDPOINTS.values() for streamed in (True, False)
    }


@pytest.mark.parametrize(("name", "endpoint", "streamed"), RECORDED)
def test_recordings(name: str, endpoint: str, streamed: bool) -> None:
    body = recordings.load(name).body
    other = to_whole(endpoint, body) if streamed else to_stream(endpoint, body)
    if other is None:
        assert _beyond(body, streamed), "an ordinary reply must have another form"
        return
    same(endpoint, *((body, other) if streamed else (other, body)))


def _beyond(body: bytes, streamed: bool) -> bool:
    """What these recordings hold that has no other form: broken streams, errors, members of one server only."""
    members = (b'"error"', b'"prompt_logprobs"', b'"timings"', b'"kv_transfer_params"', b'"prompt_token_ids"', b'"metrics"')
    if streamed:
        return b"[DONE]" not in body or any(name in body for name in members) or b'"finish_reason":"' not in body
    return any(name in body for name in members)


TEXT = st.text(max_size=20)
CALL = st.builds(
    lambda name, text: {"id": "call-1", "type": "function", "function": {"name": name, "arguments": text}}, TEXT, TEXT
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | TEXT},
    optional={"reasoning": TEXT, "tool_calls": st.lists(CALL, max_size=3), "refusal": st.none() | TEXT},
)
LOGPROBS = st.none() | st.fixed_dictionaries({"content": st.lists(st.fixed_dictionaries({"token": TEXT}), max_size=3)})


@given(messages=st.lists(MESSAGE, min_size=1, max_size=3), logprobs=LOGPROBS, usage=st.booleans())
def test_there_and_back(messages: list[Any], logprobs: Any, usage: bool) -> None:
    choices = [
        {"index": n, "message": message, "finish_reason": "stop", "stop_reason": None, "logprobs": logprobs}
        for n, message in enumerate(messages)
    ]
    whole = {"id": "i", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
    whole["usage"] = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3} if usage else None
    stream = to_stream("chat", orjson.dumps(whole))
    assert stream is not None
    same("chat", stream, orjson.dumps(whole))
    again = to_whole("chat", stream)
    assert again is not None
    same("chat", stream, again)
    back = orjson.loads(again)
    assert [c.get("logprobs") or {"content": []} for c in back["choices"]] == [logprobs or {"content": []}] * len(choices)
    assert back["usage"] == whole["usage"]


JSON = st.recursive(st.none() | st.integers(-9, 9) | TEXT, lambda inner: st.dictionaries(TEXT, inner))


@given(st.binary(max_size=200) | JSON.map(orjson.dumps))
def test_anything_else_is_no_reply(data: bytes) -> None:
    for endpoint in ("chat", "completions"):
        assert to_stream(endpoint, data) is None
        assert to_whole(endpoint, data) is None


@pytest.mark.parametrize(
    "change",
    [{"prompt_logprobs": [1]}, {"choices": [{"index": 0, "message": {"role": "assistant", "video": 1}}]}, {"choices": 3}],
)
def test_what_has_no_place_there_is_not_lost(change: dict[str, Any]) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    whole = {"id": "i", "created": 1, "model": "m", "choices": [choice]}
    assert to_stream("chat", orjson.dumps(whole)) is not None
    assert to_stream("chat", orjson.dumps(whole | change)) is None


def test_a_stream_that_is_not_complete_is_no_whole() -> None:
    stream = to_stream("completions", b'{"id":"i","choices":[{"index":0,"text":"abc","finish_reason":"stop"}]}')
    assert stream is not None and to_whole("completions", stream) is not None
    assert to_whole("completions", stream.replace(b"data: [DONE]\n\n", b"")) is None
    assert to_whole("completions", stream.replace(b'"stop"', b"null")) is None
