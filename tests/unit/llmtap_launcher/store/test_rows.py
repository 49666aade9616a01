"""Records as columns: computed figures, settings under any name, errors in any shape, poison refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from llmtap.core.record import Begin, Choice, End, ToolCall, encode
from llmtap_launcher.store.rows import BEGIN_COLUMNS, END_COLUMNS, RAW_BYTES, Asked, Replied, asked, iso, replied
from support.records import START_US, begin, chat, end, summary


def ask(record: Begin) -> Asked:
    return asked(orjson.loads(encode(record)), "w0-b")


def answer(record: End, endpoint: str | None = "chat") -> Replied:
    return replied(orjson.loads(encode(record)), endpoint)


def test_time_is_iso_utc_with_milliseconds() -> None:
    assert iso(START_US) == "2026-11-21T01:35:23.456Z"
    assert iso(0) == "1970-01-01T00:00:00.000Z"
    for impossible in (10**18, -(10**18)):
        with pytest.raises((ValueError, OverflowError)):
            iso(impossible)


def test_a_begin_record() -> None:
    found = ask(
        begin(
            body=chat(
                "one", {"role": "assistant", "content": "two"}, "three", temperature=0.5, top_p=1, max_tokens=7, seed=-1, n=2
            ),
            tags=["a", "b"],
            metadata={"k": 1},
            stream=True,
            key_name="production",
            request_id="mine",
            request_bytes=99,
        )
    )
    assert found.columns.keys() <= set(BEGIN_COLUMNS)
    expected = {
        "started_us": START_US,
        "boot": "w0-b",
        "worker": "w0",
        "endpoint": "chat",
        "model_requested": "m",
        "key_name": "production",
        "request_id": "mine",
        "tags": '["a","b"]',
        "metadata_json": '{"k":1}',
        "stream": 1,
        "temperature": 0.5,
        "top_p": 1,
        "max_tokens": 7,
        "seed": -1,
        "n": 2,
        "request_bytes": 99,
        "n_messages": 3,
        "params_json": '{"model":"m","temperature":0.5,"top_p":1,"max_tokens":7,"seed":-1,"n":2}',
    }
    assert {k: found.columns[k] for k in expected} == expected
    assert [b.text for b in found.messages] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"max_completion_tokens": 5, "max_tokens": 9}, 5),
        ({"max_output_tokens": 6}, 6),
        ({"options": {"num_predict": 7, "temperature": 0.25}}, 7),
        ({"max_tokens": "many"}, None),
        ({"max_tokens": 1 << 63}, None),
        ({"max_tokens": True}, None),
    ],
)
def test_settings_under_any_name(body: dict[str, Any], limit: int | None) -> None:
    columns = ask(begin(body=orjson.dumps({"messages": [], **body}))).columns
    assert columns["max_tokens"] == limit
    assert columns["temperature"] == (0.25 if "options" in body else None)


def test_tools_are_kept_apart() -> None:
    found = ask(begin(body=chat("x", tools=[{"type": "function"}], tool_choice="auto")))
    assert found.tools is not None
    assert found.columns["params_json"] == '{"model":"m","tool_choice":"auto"}'


def test_half_an_emoji_and_nan_are_read_like_the_servers_do() -> None:
    body = rb'{"model":"m","messages":[{"role":"user","content":"cut \ud83d"}],"temperature":NaN}'
    found = ask(begin(body=body, is_json=False))
    assert [b.text for b in found.messages] == ["cut ?"]
    assert found.columns["temperature"] is None
    assert orjson.loads(found.columns["params_json"]) == {"model": "m", "temperature": None}


def test_bodies_that_are_no_request_are_kept_as_they_came() -> None:
    found = ask(begin(body=b"{oops", is_json=False))
    assert found.messages == []
    assert found.columns["params_json"] == '{"body":"{oops"}'
    long = ask(begin(body=b"x" * (RAW_BYTES + 10), is_json=False, endpoint="other"))
    assert len(orjson.loads(long.columns["params_json"])["body"]) == RAW_BYTES
    assert orjson.loads(ask(begin(body=b'{"a":1}', endpoint="other")).columns["params_json"]) == {"body": {"a": 1}}
    large = orjson.loads(ask(begin(body=orjson.dumps({"messages": "x" * RAW_BYTES}))).columns["params_json"])
    assert len(large["truncated"]) == RAW_BYTES
    binary = ask(begin(body=b"\xff\xfe", is_json=False, endpoint="transcriptions"))
    assert binary.columns["params_json"] is None
    dropped = ask(begin(body=b"", is_json=False, body_dropped="disk_full"))
    assert dropped.columns["params_json"] == '{"body_dropped":"disk_full"}'
    nothing = ask(Begin("u", START_US, "w0", "GET", "/v1/models", "models"))
    assert nothing.columns["params_json"] is None


def test_an_end_record() -> None:
    found = answer(end(deltas=[1000, *range(10, 110, 10)], chunks=11, response_bytes=500, queue_ms=1.5, overhead_ms=0.3))
    assert found.columns.keys() <= set(END_COLUMNS)
    expected = {
        "model_response": "served",
        "response_id": "chatcmpl-1",
        "outcome": "ok",
        "status": 200,
        "backend": "a",
        "attempts": 1,
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "completion_tokens": 10,
        "usage_source": "upstream",
        "queue_ms": 1.5,
        "ttft_ms": 100.0,
        "itl_p50_ms": 5.0,
        "itl_p95_ms": 10.0,
        "itl_max_ms": 10.0,
        "tokens_per_second": 10.0,
        "chunks": 11,
    }
    assert {k: found.columns[k] for k in expected} == expected
    assert found.deltas == [1000, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert [b.text for b, _ in found.choices] == ["hi there"]
    assert found.meta == {}


@pytest.mark.parametrize(
    ("more", "rate"),
    [
        ({}, 10.0),  # 9 tokens in the 900 ms after the first
        ({"content_type": "application/json"}, 10.0),  # 10 tokens in 1000 ms
        ({"content_type": "application/json", "duration_ms": 2000.0}, 5.0),
        ({"duration_ms": 101.0}, 99.01),  # one burst has no rate of its own
        ({"ttft_ms": None, "duration_ms": 500.0}, 20.0),
        ({"duration_ms": None}, None),
        ({"duration_ms": 0.0}, None),
        ({"cache": "hit"}, None),
        ({"outcome": "cached"}, None),
    ],
)
def test_tokens_per_second(more: dict[str, Any], rate: float | None) -> None:
    assert answer(end(**more)).columns["tokens_per_second"] == rate


def test_the_first_delta_is_the_time_to_first_token_and_no_gap() -> None:
    columns = answer(end(ttft_ms=None, deltas=[1234])).columns
    assert columns["ttft_ms"] == 123.4
    assert "itl_p50_ms" not in columns
    assert answer(end(deltas=[])).deltas is None


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b'{"error":{"message":"no such model","type":"NotFoundError"}}', "NotFoundError", "no such model"),
        (b'{"error":"Unauthorized"}', None, "Unauthorized"),
        (b'{"type":"error","error":{"type":"invalid_request_error","message":"bad"}}', "invalid_request_error", "bad"),
        (b'{"detail":"Not Found"}', None, "Not Found"),
        (b'{"detail":[{"loc":["body"]}]}', None, '[{"loc":["body"]}]'),
        (b'{"message":"gone"}', None, "gone"),
    ],
)
def test_errors_in_the_backends_own_words(body: bytes, kind: str | None, message: str) -> None:
    found = answer(end(status=404, summary=None, body=body, body_is_json=True))
    assert (found.columns["error_type"], found.columns["error_message"]) == (kind, message)
    assert found.meta == {}


def test_an_error_without_words_keeps_its_body() -> None:
    found = answer(end(status=502, summary=None, body=b"<html>bad gateway", content_type="text/html"))
    assert found.columns["error_message"] is None
    assert found.meta == {"body": "<html>bad gateway", "content_type": "text/html"}


def test_the_gateways_own_words_come_first() -> None:
    found = answer(end(status=504, error_type="timeout_error", error_message="too slow", body=b'{"error":"x"}'))
    assert (found.columns["error_type"], found.columns["error_message"]) == ("timeout_error", "too slow")


def test_only_unknown_endpoints_keep_a_good_reply_raw() -> None:
    raw = {"summary": None, "body": b'{"data":[0.5]}', "body_is_json": True}
    assert answer(end(**raw), "embeddings").meta == {}
    assert answer(end(**raw), "other").meta == {"body": {"data": [0.5]}, "content_type": "text/event-stream"}


def test_choices_with_their_reasoning_and_extras() -> None:
    first = Choice(
        0, content="a", reasoning="hm", finish_reason="tool_calls", tool_calls=[ToolCall(0, "c1", name="f", arguments="{}")]
    )
    found = answer(end(summary=summary(first, Choice(1, content="b"), Choice(2), meta={"timings": {"n": 1}})))
    assert [(b.text, r) for b, r in found.choices] == [("a", "hm"), ("b", None)]
    assert found.meta == {"timings": {"n": 1}}
    assert found.columns["finish_reason"] == "tool_calls"


def test_a_dropped_reply_has_no_message() -> None:
    found = answer(end(body_dropped="disk_full", text=None))
    assert found.choices == []
    assert found.meta == {"body_dropped": "disk_full"}
    assert found.columns["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "record",
    [{}, {"at_us": "now"}, {"at_us": 10**18}, {"at_us": 1.5}, {"at_us": True}, {"at_us": None}],
)
def test_poison_begin(record: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, OverflowError)):
        asked(record, "w0-b")


@pytest.mark.parametrize(
    "record", [{}, {"outcome": "fine", "at_us": 1}, {"outcome": "open", "at_us": 1}, {"outcome": "ok", "at_us": "x"}]
)
def test_poison_end(record: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        replied(record, "chat")
