from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.errors import WireError
from llmtap.wire.request import _splice, inject_usage, parse
from support import recordings

INCLUDE = b'"stream_options":{"include_usage":true}'


def body(**members: Any) -> bytes:
    return json.dumps(members).encode()


def test_a_chat_request() -> None:
    raw = body(
        model="m",
        messages=[{"role": "user", "content": "x"}] * 3,
        stream=True,
        temperature=0,
        top_p=0.9,
        max_tokens=5,
        seed=-1,
        n=2,
    )
    parsed = parse("chat", raw)
    assert (parsed.model, parsed.stream, parsed.wants_usage, parsed.exact) == ("m", True, False, True)
    assert (parsed.temperature, parsed.top_p, parsed.max_tokens, parsed.seed, parsed.n, parsed.n_messages) == (
        0,
        0.9,
        5,
        -1,
        2,
        3,
    )
    assert parsed.obj == json.loads(raw)


@pytest.mark.parametrize(
    ("endpoint", "members", "expected"),
    [
        ("chat", {"max_completion_tokens": 7, "max_tokens": 5}, {"max_tokens": 7}),
        ("responses", {"input": "x", "max_output_tokens": 7}, {"max_tokens": 7, "n_messages": 1}),
        ("responses", {"input": [{"role": "user"}, {"role": "user"}]}, {"n_messages": 2}),
        ("completions", {"prompt": "x"}, {"n_messages": 1}),
        ("completions", {"prompt": ["x", "y"]}, {"n_messages": 2}),
        ("completions", {"prompt": [1, 2, 3]}, {"n_messages": 1}),
        ("completions", {"prompt": [[1, 2], [3]]}, {"n_messages": 2}),
        (
            "ollama_chat",
            {"options": {"num_predict": 8, "temperature": 0.5, "seed": 3}},
            {"max_tokens": 8, "temperature": 0.5, "seed": 3, "stream": True},
        ),
        ("ollama_generate", {"prompt": "x", "stream": False}, {"stream": False, "n_messages": 1}),
        ("ollama_generate", {"options": {"num_predict": -1}}, {"max_tokens": None}),
        ("ollama_embed", {"input": ["x", "y"]}, {"stream": False, "n_messages": 2}),
        ("chat", {"stream": None}, {"stream": False}),
        ("chat", {"model": None}, {"model": None}),
        ("chat", {"model": ""}, {"model": None}),
        (
            "chat",
            {"temperature": "hot", "top_p": True, "max_tokens": -5, "seed": 10**30, "n": "2", "messages": {}},
            {"temperature": None, "top_p": None, "max_tokens": None, "seed": None, "n": None, "n_messages": None},
        ),
        ("chat", {"stream": True, "stream_options": {"include_usage": True}}, {"wants_usage": True}),
        ("chat", {"stream": True, "stream_options": {"include_usage": False}}, {"wants_usage": False}),
        ("chat", {"stream": True, "stream_options": None}, {"wants_usage": False}),
        ("chat", {"stream": True, "stream_options": {"include_usage": "yes"}}, {"wants_usage": True}),
        ("chat", {"stream": True, "stream_options": "odd"}, {"wants_usage": True}),
    ],
)
def test_parameters(endpoint: str, members: dict[str, Any], expected: dict[str, Any]) -> None:
    parsed = parse(endpoint, body(**members))
    assert {name: getattr(parsed, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the request body is empty"),
        (b" \n", "the request body is empty"),
        (b"{x", "the request body is not JSON: not valid JSON at line 1, column 2"),
        (b'{"model":"m","messages":[{"content":"secret', "the request body is not JSON: JSON ends too early"),
        (b'{"model":"secret\xff"}', "the request body is not JSON: not valid UTF-8 at byte 16"),
        (b'["secret"]', "the request body must be a JSON object"),
        (b'"secret"', "the request body must be a JSON object"),
        (b'{"model":["secret"]}', "`model` must be a string"),
        (b'{"model":3}', "`model` must be a string"),
        (b'{"stream":"secret"}', "`stream` must be true or false"),
        (b'{"stream":1}', "`stream` must be true or false"),
        (b"[" * 100_000, "the request body is not JSON: JSON"),
    ],
)
def test_what_no_engine_could_read(raw: bytes, message: str) -> None:
    with pytest.raises(WireError) as caught:
        parse("chat", raw)
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b'\xef\xbb\xbf{"model":"m"}', b'{"model":"m","temperature":NaN}', b'{"model":"m","x":"\\ud800"}']
)
def test_what_python_servers_accept_is_not_exact(raw: bytes) -> None:
    parsed = parse("chat", raw)
    assert parsed.model == "m"
    assert parsed.temperature is None
    assert not parsed.exact


def inject(raw: bytes, endpoint: str = "chat") -> bytes:
    return inject_usage(parse(endpoint, raw), raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"model": "m", "stream": true}', b"{" + INCLUDE + b',"model": "m", "stream": true}'),
        (
            b' \n{ "stream":true,"big":123456789012345678901234567890}\n',
            b" \n{" + INCLUDE + b', "stream":true,"big":123456789012345678901234567890}\n',
        ),
    ],
)
def test_the_member_is_spliced_in_and_every_other_byte_stays(raw: bytes, expected: bytes) -> None:
    assert inject(raw) == expected
    assert inject(raw, "completions") == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b"{}", b"{" + INCLUDE + b"}"), (b" { \n} ", b" {" + INCLUDE + b" \n} "), (b'{"a":1}', b"{" + INCLUDE + b',"a":1}')],
)
def test_splicing_into_an_empty_object(raw: bytes, expected: bytes) -> None:
    assert _splice(raw, INCLUDE) == expected
    assert orjson.loads(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("null", {"include_usage": True}),
        ("{}", {"include_usage": True}),
        ('{"include_usage":false}', {"include_usage": True}),
        ('{"include_usage":null,"x":1}', {"include_usage": True, "x": 1}),
        # it counts only together with include_usage: on its own it was off, and must stay off
        ('{"include_usage":false,"continuous_usage_stats":true}', {"include_usage": True, "continuous_usage_stats": False}),
        ('{"continuous_usage_stats":true}', {"include_usage": True, "continuous_usage_stats": False}),
        ('{"continuous_usage_stats":false}', {"include_usage": True, "continuous_usage_stats": False}),
    ],
)
def test_options_that_are_there_are_changed(options: str, expected: dict[str, Any]) -> None:
    raw = f'{{"model":"ü","stream":true,"stream_options":{options},"big":123456789012345678901234567890,"f":1.5}}'.encode()
    changed = json.loads(inject(raw))
    assert changed.pop("stream_options") == expected
    assert changed == {"model": "ü", "stream": True, "big": 123456789012345678901234567890, "f": 1.5}


@pytest.mark.parametrize("raw", [b'\xef\xbb\xbf{"stream":true,"x":NaN}', b'{"stream":true,"x":"\\ud800"}'])
def test_bodies_that_are_not_exact_are_written_anew(raw: bytes) -> None:
    changed = inject(raw)
    assert json.loads(changed)["stream_options"] == {"include_usage": True}
    assert changed.isascii()
    assert parse("chat", changed).wants_usage


@pytest.mark.parametrize(
    ("endpoint", "raw"),
    [
        ("chat", b'{"stream":false}'),
        ("chat", b'{"model":"m"}'),
        ("chat", b"{}"),
        ("chat", b'{"stream":true,"stream_options":{"include_usage":true}}'),
        ("chat", b'{"stream":true,"stream_options":{"include_usage":1}}'),
        ("chat", b'{"stream":true,"stream_options":[]}'),
        ("responses", b'{"stream":true}'),
        ("messages", b'{"stream":true}'),
        ("ollama_chat", b'{"model":"m"}'),
    ],
)
def test_where_nothing_is_injected_the_same_bytes_come_back(endpoint: str, raw: bytes) -> None:
    assert inject(raw, endpoint) is raw


def test_a_body_too_deep_to_write_anew_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_deep(text: str) -> Any:
        raise RecursionError

    raw = b'{"stream":true,"stream_options":null}'
    parsed = parse("chat", raw)
    monkeypatch.setattr("llmtap.wire.request.json", SimpleNamespace(loads=too_deep))
    assert inject_usage(parsed, raw) is raw


@pytest.mark.parametrize(
    "name", [name for name in recordings.names() if "/v1/chat/completions" in recordings.load(name).request_line]
)
def test_recorded_requests(name: str) -> None:
    recording = recordings.load(name)
    if not recording.request_body:  # a GET
        return
    if "bad_json" in name:
        with pytest.raises(WireError, match="not JSON"):
            parse("chat", recording.request_body)
        return
    parsed = parse("chat", recording.request_body)
    sent = inject_usage(parsed, recording.request_body)
    assert parsed.exact
    before, after = json.loads(recording.request_body), json.loads(sent)
    if before.get("stream"):
        assert after.pop("stream_options")["include_usage"] is True
        before.pop("stream_options", None)
    assert after == before


json_objects = st.dictionaries(
    st.sampled_from(
        ["model", "stream", "stream_options", "messages", "prompt", "input", "options", "n", "temperature", "seed", "max_tokens"]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["include_usage", "continuous_usage_stats", "x"]), inner, max_size=2)
        ),
        max_leaves=6,
    ),
)


@given(st.sampled_from(["chat", "completions", "responses", "ollama_chat"]), json_objects)
def test_any_object_is_read_or_refused_and_injecting_asks_for_usage(endpoint: str, members: dict[str, Any]) -> None:
    raw = json.dumps(members).encode()
    try:
        parsed = parse(endpoint, raw)
    except WireError:
        return
    changed = inject_usage(parsed, raw)
    if changed is not raw:
        again = parse(endpoint, changed)
        assert again.stream and again.wants_usage
        assert again.obj["stream_options"]["include_usage"] is True
        before, after = ({**json.loads(text), "stream_options": 0} for text in (raw, changed))
        assert json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        parse("chat", raw)
    except WireError as error:
        assert str(error)
