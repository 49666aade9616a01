"""Spool records: one line of plain JSON, bodies as received, no secrets because there is no field for them."""

from __future__ import annotations

import json
from dataclasses import fields

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.record import Begin, Choice, End, Summary, ToolCall, body_bytes, encode, encode_parts, json_body


def begin(**changes: object) -> Begin:
    given: dict[str, object] = {"uid": "U", "at_us": 1, "worker": "w", "method": "POST", "path": "/v1/x", "endpoint": "chat"}
    return Begin(**(given | changes))  # type: ignore[arg-type]


def test_a_json_body_is_spliced_in_not_re_serialised() -> None:
    line = encode(begin(body=b'{"a": 1e400,  "b": [1 ,2]}', body_is_json=True))
    assert b'"body":{"json":{"a": 1e400,  "b": [1 ,2]}}' in line


def test_a_pretty_printed_body_stays_on_one_line() -> None:
    body = json.dumps({"messages": [{"content": "two\nlines"}]}, indent=2).encode().replace(b"\n", b"\r\n")
    line = encode(begin(body=body, body_is_json=True))
    assert b"\n" not in line and b"\r" not in line
    assert orjson.loads(line)["body"]["json"] == json.loads(body)


@pytest.mark.parametrize(
    "changes",
    [
        {"body": b'{"a": 1e400,\n "b": [1 ,2]}', "body_is_json": True},
        {"body": b"[]", "body_is_json": True, "forwarded": json_body(b'{"b":2}'), "tags": ["t"]},
        {"body": b"no JSON\n"},
        {"body": b"\xff\x00"},
        {},
    ],
)
def test_in_parts_it_is_the_same(changes: dict[str, object]) -> None:
    record = begin(**changes)
    assert orjson.loads(_numbers(b"".join(encode_parts(record)))) == orjson.loads(_numbers(encode(record)))


def _numbers(line: bytes) -> bytes:
    return line.replace(b"1e400", b"1e40")  # which orjson's reader refuses


def test_nothing_is_written_for_what_is_not_known() -> None:
    plain = orjson.loads(encode(begin()))
    assert "key_name" not in plain and "body" not in plain
    assert plain["t"] == "begin" and plain["v"] == 1


def test_the_reply_of_an_end_record() -> None:
    summary = Summary(choices=[Choice(0, content="hi", tool_calls=[ToolCall(0, "c1", name="f", arguments="{}")])])
    plain = orjson.loads(encode(End(uid="U", at_us=2, outcome="ok", summary=summary, deltas=[10, 3])))
    assert plain["t"] == "end"
    assert plain["summary"]["choices"][0]["tool_calls"][0]["name"] == "f"
    assert plain["deltas"] == [10, 3]


def test_the_size_of_a_body_that_was_sent_on_as_it_came() -> None:
    assert orjson.loads(encode(begin(body=None, body_dropped="streamed")))["body_dropped"] == "streamed"
    assert orjson.loads(encode(End(uid="U", at_us=2, outcome="ok", request_bytes=7)))["request_bytes"] == 7
    assert "request_bytes" not in orjson.loads(encode(End(uid="U", at_us=2, outcome="ok")))


def test_record_types_have_no_place_for_headers() -> None:
    for kind in (Begin, End):
        assert not {f.name for f in fields(kind) if "header" in f.name or "authorization" in f.name or "cookie" in f.name}


@given(st.binary(max_size=200))
def test_any_body_survives(body: bytes) -> None:
    line = encode(begin(body=body))
    assert b"\n" not in line
    assert body_bytes(orjson.loads(line)["body"]) == body


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_any_json_body_survives(value: object) -> None:
    body = orjson.dumps(value)
    stored = orjson.loads(encode(begin(body=body, body_is_json=True)))["body"]
    assert orjson.loads(body_bytes(stored) or b"") == value
