"""An entry becomes the records a gateway would have written, with the same identity every time."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from llmtap_launcher.importing.entries import Entry, Malformed, dumped, moment, records, uid_of

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = (
    b'data: {"id":"c1","object":"chat.completion.chunk","model":"served","choices":[{"index":0,"delta":{"content":"he"}}]}\n\n'
    b'data: {"id":"c1","object":"chat.completion.chunk","model":"served","choices":[{"index":0,"delta":{"content":"y"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


def test_a_stream(stored: Any) -> None:
    entry = Entry(
        "x", 1_763_717_400_000_000, "/v1/chat/completions", BODY, reply=STREAM, content_type="text/event-stream", duration_ms=5.0
    )
    row, asked, said = stored(entry)
    assert (row["uid"], row["worker"], row["outcome"], row["status"]) == (uid_of(entry), "import", "ok", 200)
    assert (asked, said) == ([{"role": "user", "content": "hi"}], {"role": "assistant", "content": "hey"})
    assert (row["prompt_tokens"], row["completion_tokens"], row["model_response"]) == (3, 2, "served")
    assert row["started_at"] == "2025-11-21T09:30:00.000Z"


def test_an_error(stored: Any) -> None:
    row, _, said = stored(
        Entry("x", 1, "/v1/chat/completions", BODY, status=400, reply=b'{"error":{"message":"too long","type":"bad"}}')
    )
    assert (row["outcome"], row["status"], row["error_message"], said) == ("upstream_error", 400, "too long", None)


def test_the_identity_is_of_the_source_and_the_time() -> None:
    def uid(identity: str, at_us: int) -> str:
        return uid_of(Entry(identity, at_us, "/", b""))

    assert uid("a", 5_000_000) == uid("a", 5_000_000) != uid("b", 5_000_000)
    assert len(uid("a", 1)) == 26
    assert uid("a", 5_000_000_000) < uid("b", 6_000_000_000)


@pytest.mark.parametrize(("path", "body"), [("/v1/files", BODY), ("/v1/chat/completions", b"{"), ("/v1/chat/completions", b"[]")])
def test_what_is_no_exchange(path: str, body: bytes) -> None:
    with pytest.raises(Malformed):
        records(Entry("x", 1, path, body))


@pytest.mark.parametrize(
    ("value", "us"),
    [
        ("2025-11-21T09:30:00", 1_763_717_400_000_000),
        ("2025-11-21T10:30:00+01:00", 1_763_717_400_000_000),
        ("2025-11-21T09:30:00.5Z", 1_763_717_400_500_000),
        (1763717400, 1_763_717_400_000_000),
        (1763717400.25, 1_763_717_400_250_000),
        ("1763717400", 1_763_717_400_000_000),
        (1763717400000, 1_763_717_400_000_000),
    ],
)
def test_times(value: Any, us: int) -> None:
    assert moment(value) == us


@pytest.mark.parametrize("value", [None, "", "yesterday", -1, True, [], float("nan")])
def test_times_that_are_none(value: Any) -> None:
    with pytest.raises(Malformed):
        moment(value)


def test_half_characters() -> None:
    with pytest.raises(Malformed):
        dumped("\ud800")
    assert orjson.loads(dumped({"a": 1})) == {"a": 1}
