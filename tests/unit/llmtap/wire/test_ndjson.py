from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.errors import WireError
from llmtap.wire.ndjson import NdjsonDecoder
from support import cutting


def decode(pieces: list[bytes], max_line: int | None = None) -> tuple[list[bytes], bool]:
    decoder = NdjsonDecoder(max_line)
    lines: list[bytes] = []
    try:
        for piece in pieces:
            lines += [event.data for event in decoder.feed(piece)]
        lines += [event.data for event in decoder.close()]
    except WireError:
        return lines, True
    return lines, False


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\r\n\r\n \n{"b":\r2}\n', [b'{"a":1}\r', b'{"b":\r2}']),
        (b'{"a":1}', [b'{"a":1}']),
        (b"\n  ", []),
        (b"", []),
    ],
)
def test_one_event_a_line(stream: bytes, lines: list[bytes]) -> None:
    assert decode([stream]) == (lines, False)
    assert decode(cutting.bytewise(stream)) == (lines, False)


def test_a_line_that_is_too_long() -> None:
    stream = b"12\n12345\n1\n"
    assert decode([stream], 4) == ([b"12"], True)
    assert decode(cutting.bytewise(stream), 4) == ([b"12"], True)
    decoder = NdjsonDecoder(4)
    with pytest.raises(WireError, match="longer than 4 bytes"):
        decoder.feed(b"12345")
    with pytest.raises(WireError):
        decoder.close()


@given(st.binary(max_size=100) | st.text("{}1 \n\r").map(str.encode), cutting.cuts, st.sampled_from([None, 5]))
def test_any_cut_gives_the_same_lines(data: bytes, cuts: list[int], max_line: int | None) -> None:
    assert decode(cutting.at(data, cuts), max_line) == decode([data], max_line)
