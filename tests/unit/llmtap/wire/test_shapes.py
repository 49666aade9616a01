"""A shape takes exactly the events that parsing would read as its own."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.wire.shapes import MAX_EVENT, Shape, Slot, learn

EVENT = b'{"id":"c1","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}],"usage":null}'
PATH = ("choices", 0, "delta", "content")


def shape_of(data: bytes, path: tuple[str | int, ...] = PATH, name: str = "") -> Shape | None:
    return learn(name, data, Slot(path, []))


def learned(data: bytes = EVENT, path: tuple[str | int, ...] = PATH, name: str = "") -> Shape:
    shape = shape_of(data, path, name)
    assert shape is not None
    return shape


def text_of(data: bytes) -> Any:
    value = orjson.loads(data)
    for step in PATH:
        value = value[step]
    return value


def sse(inside: bytes) -> bytes:
    return b"data: " + EVENT.replace(b"Hello", inside) + b"\n\n"


def test_the_head_and_the_tail_are_what_is_around_the_text() -> None:
    shape = learned()
    assert shape.head == b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"'
    assert shape.tail == b'"},"finish_reason":null}],"usage":null}\n\n'


def test_one_event_and_many() -> None:
    shape = learned()
    assert shape.take(sse(b" world")) == 1
    assert shape.take(sse(b"a") + sse(b"") + sse(b"b\\n\\u00e9") + sse("é".encode())) == 3
    assert shape.take(sse(b"")) == 0
    assert "".join(shape.parts) == " worldab\néé"


def test_events_with_a_name() -> None:
    data = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}'
    shape = learned(data, ("delta", "text"), "content_block_delta")
    assert shape.take(b"event: content_block_delta\ndata: " + data + b"\n\n") == 1
    assert shape.take(b"data: " + data + b"\n\n") == -1


@pytest.mark.parametrize(
    "inside",
    [
        b'a"b',
        b'a\\"b',  # taken alone, see below, but not among others
        b"a\\",
        b"a\\x",
        b"a\nb",
        b"a\rb",
        b"\x00",
        b"\xff",
        b"\\ud83d",
        b'","',
        b'a","finish_reason":"stop","x":"',
        b'"},"finish_reason":null}],"usage":null}\n\ndata: {"id":"c1","choices":[{"index":0,"delta":{"content":',
    ],
)
def test_what_is_not_the_inside_of_a_string_is_left_alone(inside: bytes) -> None:
    shape = learned()
    others = sse(b"a"), sse(b"b")
    if inside != b'a\\"b':
        assert shape.take(sse(inside)) == -1
    assert shape.take(others[0] + sse(inside) + others[1]) == -1
    assert shape.take(sse(inside) + others[0]) == -1
    assert shape.take(others[0] + sse(inside)) == -1
    assert shape.parts == []


def test_escaped_quotes() -> None:
    shape = learned()
    assert shape.take(sse(b'say \\"pong\\"')) == 1
    assert shape.take(sse(b"back\\\\")) == 1
    assert shape.take(sse(b"back\\\\") + sse(b"x")) == -1  # followed by a quote: told apart one by one only
    assert shape.parts == ['say "pong"', "back\\"]


def test_pieces_that_are_not_whole_events() -> None:
    shape = learned()
    whole = sse(b"Hello")
    for cut in range(len(whole)):
        assert shape.take(whole[:cut]) == -1
        assert shape.take(whole + whole[:cut]) == (1 if cut == 0 else -1)
        if cut:
            assert shape.take(whole[cut:]) == -1
    assert shape.take(whole.replace(b"\n\n", b"\r\n\r\n")) == -1


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"delta":{"content":"a","content":"b"}}]}',  # the first of two is not the one that counts
        b'{"choices":[{"delta":{"content":{"content":"a"}}}]}',
        b'{"x":{"content":"a"},"choices":[{"delta":{"content":"b"}}]}',
        b'{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}',
        b'{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}',
        b'{"choices":[{"delta":{"content":"a"}}],"x":NaN}',
        b'{"choices":[{"delta":{"content":"a"}}]\n}',
        b'{"choices":[{"delta":{"content":12}}]}',
        b'{"choices":[{"delta":{"content":"a',
        b'{"choices":[{"delta":{}}]}',
        b'{"choices":[{"delta":{"content":"%b"}}]}' % (b"x" * MAX_EVENT),
    ],
)
def test_no_shape_is_learned_where_it_would_not_be_safe(data: bytes) -> None:
    assert shape_of(data) is None


def test_white_space_behind_the_colon() -> None:
    data = orjson.dumps({"choices": [{"delta": {"content": 'say "x" \\'}}]}).replace(b":", b": ")
    assert learned(data).take(b"data: " + data + b"\n\n") == 1


PIECES = st.lists(st.sampled_from([b'"', b"\\", b"a", b",", b'","', b"\\u00e9", b"\n", b"{", b"[", b"]", b"\xc3\xa9", b"\\n"]))


@given(PIECES)
def test_any_bytes_in_the_slot_of_one_event(pieces: list[bytes]) -> None:
    shape = learned()
    event = sse(b"".join(pieces))
    try:
        text = text_of(event[6:-2]) if b"\n" not in event[:-2] else None
    except (orjson.JSONDecodeError, LookupError, TypeError):
        text = None
    count = shape.take(event)
    if count >= 0:
        assert "".join(shape.parts) == text
        assert count == (1 if text else 0)
    else:
        # nothing a server sends is missed: only what changes the event, or is no JSON at all
        assert b'"' in b"".join(pieces) or text is None


@given(st.lists(st.one_of(PIECES.map(b"".join), st.text(max_size=8).map(lambda text: orjson.dumps(text)[1:-1])), max_size=6))
def test_any_bytes_in_the_slots_of_many_events(insides: list[bytes]) -> None:
    shape = learned()
    one_by_one = learned()
    counts = [one_by_one.take(sse(inside)) for inside in insides]
    count = shape.take(b"".join(sse(inside) for inside in insides))
    if count >= 0:
        assert min(counts) >= 0
        assert count == sum(counts)
        assert "".join(shape.parts) == "".join(one_by_one.parts)
    elif counts and min(counts) >= 0:
        assert any(inside.endswith(b"\\") or b'\\"' in inside for inside in insides)
