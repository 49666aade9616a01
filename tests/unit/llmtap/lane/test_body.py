import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.lane.body import BodyWriter, Framing


class Wire(asyncio.WriteTransport):
    def __init__(self) -> None:
        super().__init__()
        self.got = b""
        self.writes = 0

    def write(self, data: bytes) -> None:  # type: ignore[override]
        assert data
        self.got += data
        self.writes += 1


def unchunk(data: bytes) -> bytes:
    out = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            assert data == b"\r\n"
            return out
        out += data[:n]
        assert data[n : n + 2] == b"\r\n"
        data = data[n + 2 :]


@given(st.lists(st.binary(max_size=70_000 // 100), max_size=20))
def test_chunks_come_back_as_they_went(pieces: list[bytes]) -> None:
    wire = Wire()
    writer = BodyWriter(wire, Framing.CHUNKED)
    for piece in pieces:
        writer.write(piece)
    assert writer.end() is True
    assert unchunk(wire.got) == b"".join(pieces)
    assert wire.writes == sum(1 for piece in pieces if piece) + 1  # one write a piece


def test_trailers_come_after_the_last_chunk() -> None:
    wire = Wire()
    BodyWriter(wire, Framing.CHUNKED).end(b"abc", b"X: y\r\n\r\n")
    assert wire.got == b"3\r\nabc\r\n0\r\nX: y\r\n\r\n"
    assert wire.writes == 1


@pytest.mark.parametrize("framing", list(Framing))
def test_what_is_held_goes_out_with_what_comes_next(framing: Framing) -> None:
    wires = [Wire(), Wire(), Wire()]
    for wire, last in zip(wires, (b"", b"abc", b""), strict=True):
        writer = BodyWriter(wire, framing, 3)
        writer.held = b"head "
        assert wire.got == b""
        if wire is wires[2]:
            writer.flush()
            assert wire.got == b"head "
        writer.end(last)
        assert wire.got.startswith(b"head ") and wire.got.count(b"head ") == 1
    assert [wire.writes for wire in wires[:2]] == [1, 1]


def test_a_length_is_never_exceeded_and_a_short_body_must_close() -> None:
    wire = Wire()
    writer = BodyWriter(wire, Framing.LENGTH, 5)
    writer.write(b"abc")
    assert writer.end() is False
    writer.write(b"defgh")
    writer.write(b"i")
    assert wire.got == b"abcde" and writer.end() is True


def test_until_close() -> None:
    wire = Wire()
    writer = BodyWriter(wire, Framing.CLOSE)
    writer.write(b"abc")
    assert wire.got == b"abc" and writer.end() is False


def test_no_body() -> None:
    wire = Wire()
    writer = BodyWriter(wire, Framing.EMPTY)
    writer.write(b"abc")
    assert wire.got == b"" and writer.end() is True


@pytest.mark.parametrize("framing", list(Framing))
def test_the_tail_is_the_end_of_what_was_written(framing: Framing) -> None:
    writer = BodyWriter(Wire(), framing, 1000)
    for piece in (b"x" * 100, b"data: [D", b"", b"ONE", b"]\n\n"):
        writer.write(piece)
    assert writer.tail.endswith(b"data: [DONE]\n\n")
