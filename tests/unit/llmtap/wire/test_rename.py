"""The model's name is changed, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.wire.rename import with_model, with_query_model

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    max_leaves=10,
)


def test_every_other_byte_stays() -> None:
    body = b' {"a" :\t[1.50, {"model":"inner"}],\r\n"model" : "alias" ,"z":"\\u00e9 \xc3\xa9"}\n'
    assert with_model(body, "org/served") == body.replace(b'"alias"', b'"org/served"')


@pytest.mark.parametrize(
    ("body", "out"),
    [
        (b'{"model":"a"}', b'{"model":"b"}'),
        (b'{"model":"a","model":"c"}', b'{"model":"b","model":"b"}'),
        (b'{"m\\u006fdel":"a"}', b'{"m\\u006fdel":"b"}'),
        (b'{"model":null}', b'{"model":"b"}'),
        (b'\xef\xbb\xbf{"model":"a"}', b'{"model":"b"}'),
        (b'{"x":NaN,"model":"a"}', b'{"x":NaN,"model":"b"}'),
        (b'{"x":"\\ud800","model":"a"}', b'{"x":"\\ud800","model":"b"}'),
    ],
)
def test_spellings(body: bytes, out: bytes) -> None:
    assert with_model(body, "b") == out


DEEP = b'{"a":' + b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"a":1}', b'{"model"', b'{"model":', b'{"model":"a"', b"\xff", b'{"model" "a"}', b"{1:2}", b'"x"', DEEP],
)
def test_what_cannot_be_read_stays(body: bytes) -> None:
    assert with_model(body, "b") == body


def test_names_are_written_as_json() -> None:
    assert json.loads(with_model(b'{"model":"a"}', 'b"\\\u00e9'))["model"] == 'b"\\\u00e9'


@given(st.dictionaries(st.text(), plain), plain, st.text(min_size=1), st.booleans())
def test_any_object(rest: dict[str, Any], value: Any, name: str, pretty: bool) -> None:
    body = json.dumps({**rest, "model": value}, indent=2 if pretty else None).encode()
    assert json.loads(with_model(body, name)) == {**rest, "model": name}


@given(st.binary())
def test_any_bytes(body: bytes) -> None:
    with_model(body, "b")


def test_queries() -> None:
    assert with_query_model("/v1/realtime?x=1&model=a&y=//", "org/b c") == "/v1/realtime?x=1&model=org%2Fb%20c&y=//"
    assert with_query_model("/v1/realtime", "b") == "/v1/realtime"
