from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.errors import WireError
from llmtap.wire.lines import Event
from llmtap.wire.sse import SseDecoder
from support import cutting


def decode(pieces: list[bytes], max_event: int | None = None) -> tuple[list[Event], bool]:
    """Events, and whether the stream ended in an error."""
    decoder = SseDecoder(max_event)
    events: list[Event] = []
    try:
        for piece in pieces:
            events += decoder.feed(piece)
        events += decoder.close()
    except WireError:
        return events, True
    return events, False


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: {}\n\n", [("", b"{}")]),
        (b"data: a\n\ndata: b\n\n", [("", b"a"), ("", b"b")]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [("", b"a"), ("", b"b"), ("", b"c")]),
        (b"data: a\ndata: b\n\n", [("", b"a\nb")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [("x", b"a"), ("", b"b")]),
        (b"event: x\n\ndata: b\n\n", [("", b"b")]),  # an event without data is dropped, and its name with it
        (b": comment\n\ndata: a\n: in between\n\n", [("", b"a")]),
        (b"data:a\n\ndata:  b\n\n", [("", b"a"), ("", b" b")]),  # one space belongs to the syntax
        (b"data\n\ndata\ndata\n\n", [("", b""), ("", b"\n")]),  # the standard's own example
        (b"id: 1\nretry: 10\nother: x\ndata: a\n\n", [("", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
        (b"\n\n\ndata: a\n\n\n", [("", b"a")]),
        (b"event:m\xc3\xa4rz\ndata: a\n\n", [("märz", b"a")]),
        (b"data: x\xe2\x80\xa8y\x85z\n\n", [("", b"x\xe2\x80\xa8y\x85z")]),  # line ends of text are none here
        (b"", []),
        (b"\xef", []),
    ],
)
def test_the_rules_of_the_standard(stream: bytes, events: list[tuple[str, bytes]]) -> None:
    expected = [Event(*event) for event in events]
    assert decode([stream]) == (expected, False)
    assert decode(cutting.bytewise(stream)) == (expected, False)


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"event: \ndata: [DONE]"])
def test_the_end_of_input_gives_the_event_in_hand(tail: bytes) -> None:
    assert decode([b"data: a\n\n" + tail]) == ([Event("", b"a"), Event("", b"[DONE]")], False)


def test_the_usual_piece_after_an_unusual_one() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"event: x\n") == []
    assert decoder.feed(b"data: a\n\n") == [Event("x", b"a")]
    assert decoder.feed(b"data: b\n\n") == [Event("", b"b")]
    assert decoder.feed(b"da") == []
    assert decoder.feed(b"ta: c\n\n") == [Event("", b"c")]
    assert decoder.feed(b"data: d\r") == []
    assert decoder.feed(b"\ndata: e\n\n") == [Event("", b"d\ne")]


@pytest.mark.parametrize("long", [b"data: 123456789\n\n", b"data: 1234\ndata: 1234\n\n", b":" + b"x" * 100 + b"\n\n"])
def test_an_event_that_is_too_long(long: bytes) -> None:
    stream = b"data: a\n\n" + long + b"data: b\n\n"
    assert decode([stream], max_event=8) == ([Event("", b"a")], True)
    assert decode(cutting.bytewise(stream), max_event=8) == ([Event("", b"a")], True)


def test_events_before_the_fault_come_first_and_the_error_stays() -> None:
    decoder = SseDecoder(max_event=8)
    assert decoder.feed(b"data: a\n\ndata: 123456789\n\n") == [Event("", b"a")]
    for _ in range(2):
        with pytest.raises(WireError, match="longer than 8 bytes"):
            decoder.feed(b"data: b\n\n")
    with pytest.raises(WireError):
        decoder.close()


def test_exactly_the_limit_passes() -> None:
    assert decode([b"data: 12345678\n\n"], max_event=8)[0] == [Event("", b"12345678")]
    assert decode([b"data: 1234\ndata: 123\n\n"], max_event=8)[0] == [Event("", b"1234\n123")]


lines = st.sampled_from(
    [b"data: a", b"data:", b"data", b"event: x", b": c", b"", b"", b'data: {"a":1}', b"\xef\xbb\xbf", b"id: 3", b"\xff"]
)
ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
streams = st.lists(st.tuples(lines, ends).map(b"".join), max_size=20).map(b"".join)


@given(streams, cutting.cuts, st.sampled_from([None, 3]))
def test_any_cut_gives_the_same_events(stream: bytes, cuts: list[int], max_event: int | None) -> None:
    assert decode(cutting.at(stream, cuts), max_event) == decode([stream], max_event)


@given(st.binary(max_size=200), cutting.cuts)
def test_any_bytes_give_events_or_a_wire_error(data: bytes, cuts: list[int]) -> None:
    assert decode(cutting.at(data, cuts), 50) == decode([data], 50)


def test_a_megabyte_byte_by_byte_is_held_once() -> None:
    decoder = SseDecoder(max_event=None)
    data = b"data: " + b"x" * 1_000_000 + b"\n\n"
    held = decoder._lines._partial
    events = [event for piece in cutting.bytewise(data) for event in decoder.feed(piece)]
    assert [len(event.data) for event in events] == [1_000_000]
    assert decoder._lines._partial is held  # grown in place: never joined anew for each piece
