"""Two spellings of one message have one hash; two messages have two; what is stored loses nothing."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.store.attachments import restore
from llmtap_launcher.store.canonical import (
    HASH_BYTES,
    LOOSE_BYTES,
    asked_words,
    body_of,
    digest,
    link,
    loose,
    message_of,
    tools_body,
)


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}),
        ({"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": "input_text", "text": "hi", "x": None}]}),
        ({"role": "user", "content": "hi"}, {"role": "user", "content": ["hi"]}),
        (
            {"role": "user", "content": "hi"},
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        ),
        (
            {"role": "assistant", "content": "hi"},
            {"role": "assistant", "content": "hi", "refusal": None, "reasoning": "hm", "tool_calls": [], "name": None},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [call('{"a":1,"b":2}', index=0)]},
            {"role": "assistant", "content": "", "tool_calls": [call('{"b": 2, "a": 1}')]},
        ),
        ({"role": "assistant", "tool_calls": [call('{"a":1}')]}, {"role": "assistant", "tool_calls": [call({"a": 1})]}),
        (
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
        ),
    ],
)
def test_the_same_message(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert body_of(one).hash == body_of(other).hash


def test_different_messages() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "hi "},
        {"role": "user", "content": "hi", "name": "bob"},
        {"role": "tool", "content": "hi", "tool_call_id": "c1"},
        {"role": "tool", "content": "hi", "tool_call_id": "c2"},
        {"role": "assistant", "tool_calls": [call("{}")]},
        {"role": "assistant", "tool_calls": [call("not json")]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "a"}]},
    ]
    assert len({body_of(m).hash for m in messages}) == len(messages)


def test_hashes_are_stored_so_they_never_change() -> None:
    assert body_of({"content": "hi", "role": "user"}).hash == digest(b'{"content":"hi","role":"user"}')
    assert digest(b"").hex() == "cae66941d9efbd404e4d88758ea67670"
    assert link(b"", b"x") == digest(b"x")
    assert len(digest(b"x")) == HASH_BYTES


def test_plain_text_needs_no_json() -> None:
    body = body_of({"role": "user", "content": "grüße", "name": None, "refusal": ""})
    assert (body.role, body.text, body.json, body.size) == ("user", "grüße", None, 7)
    assert body_of({"role": "user", "content": [{"type": "text", "text": "hi"}]}).json is None


def test_what_is_more_than_text_is_kept_whole() -> None:
    parts = [
        {"type": "text", "text": "what is "},
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"type": "text", "text": "this"},
    ]
    body = body_of({"role": "user", "content": parts})
    assert body.text == "what is this"
    assert orjson.loads(body.json or "") == {"role": "user", "content": parts}
    body = body_of({"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call('{"a": 1}')]})
    assert body.text is None
    assert orjson.loads(body.json or "") == {"role": "assistant", "reasoning": "hm", "tool_calls": [call('{"a": 1}')]}
    assert body.size == len((body.json or "").encode())


def test_an_odd_role_is_a_users() -> None:
    assert body_of({"content": "x"}).role == body_of({"role": 5, "content": "x"}).role == "user"
    assert body_of({"role": "assistant", "content": ""}).text == ""


def test_tools() -> None:
    one = tools_body([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    other = tools_body([{"function": {"parameters": {}, "name": "f"}, "type": "function"}])
    assert one.hash == other.hash
    assert (one.role, one.text) == ("tools", None)
    assert orjson.loads(one.json or "")[0]["function"]["name"] == "f"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
fields = st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal"])


@given(st.dictionaries(fields, json_values))
def test_any_message_has_a_body(message: dict[str, Any]) -> None:
    body = body_of(message)
    assert len(body.hash) == HASH_BYTES
    assert body.json is None or isinstance(orjson.loads(body.json), dict)
    assert body_of(dict(reversed(message.items()))).hash == body.hash


def test_a_message_comes_back() -> None:
    png = "data:image/png;base64," + "iVBOR" * 200 + "iVBORw=="
    for message in (
        {"role": "user", "content": "hi"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "assistant", "content": None, "tool_calls": [call("{}")]},
        {"role": "assistant", "content": "hi", "reasoning": "hm"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": png}}]},
    ):
        body = body_of(message)
        stored = {it.hash: it.content for it in body.attachments}
        assert restore(message_of(body.role, body.text, body.json), stored.get) == message
        if type(message["content"]) is str:
            assert body.json is None or message["content"] not in body.json, "the text is stored once"


def test_a_loose_hash_sees_no_white_space() -> None:
    def name(*texts: str) -> bytes:
        *asked, reply = (body_of({"role": "user", "content": text}) for text in texts)
        return loose(asked_words(asked), reply)

    assert name("a b", "\nc  d ") == name(" ab\n", "cd")
    assert len({name("a", "b"), name("b", "a"), name("a", "a", "b"), name("x", "a", "b"), name("a", "c")}) == 5
    assert len(name("a", "b")) == LOOSE_BYTES
    calls = [body_of({"role": "assistant", "tool_calls": [call(f'{{"a": {n}}}')]}) for n in (1, 2)]
    asked = asked_words([body_of({"role": "user", "content": "x"})])
    assert loose(asked, calls[0]) != loose(asked, calls[1])
