from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.wire.lines import LineSplitter
from support import cutting


def split(data: list[bytes], **options: object) -> tuple[list[bytes], bytes]:
    splitter = LineSplitter(**{"carriage_return": True, **options})  # type: ignore[arg-type]
    lines = [line for piece in data for line in splitter.feed(piece)]
    return lines, splitter.rest()


@pytest.mark.parametrize(
    ("data", "lines", "rest"),
    [
        (b"a\nb\n", [b"a", b"b"], b""),
        (b"a\r\nb\rc\n\r\n", [b"a", b"b", b"c", b""], b""),
        (b"a\n\nb", [b"a", b""], b"b"),
        (b"a\x0b\x0c\x85\x1c\n", [b"a\x0b\x0c\x85\x1c"], b""),  # what only text counts as line ends
        (b"", [], b""),
        (b"\r\r\n", [b"", b""], b""),
    ],
)
def test_lines_end_at_lf_cr_and_crlf(data: bytes, lines: list[bytes], rest: bytes) -> None:
    assert split([data]) == (lines, rest)
    assert split(cutting.bytewise(data)) == (lines, rest)


def test_json_lines_end_at_lf_only() -> None:
    assert split([b"a\rb\r\nc\n"], carriage_return=False) == ([b"a\rb\r", b"c"], b"")


def test_a_line_that_is_too_long_ends_the_reading() -> None:
    for pieces in ([b"ab\nabcde\ncd\n"], cutting.bytewise(b"ab\nabcde\ncd\n")):
        splitter = LineSplitter(carriage_return=False, max_line=4)
        assert [line for piece in pieces for line in splitter.feed(piece)] == [b"ab"]
        assert splitter.overflow
        assert not splitter.idle
        assert splitter.rest() == b""


def test_idle_means_that_nothing_is_held() -> None:
    splitter = LineSplitter(carriage_return=True)
    for piece, idle in (
        (b"a\n", True),
        (b"b", False),
        (b"\n", True),
        (b"c\r", False),
        (b"\n", True),
        (b"d\r", False),
        (b"e\n", True),
    ):
        splitter.feed(piece)
        assert splitter.idle is idle


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"xyz"]), max_size=30).map(b"".join), cutting.cuts, st.booleans())
def test_any_cut_gives_the_same_lines(data: bytes, cuts: list[int], carriage_return: bool) -> None:
    assert split(cutting.at(data, cuts), carriage_return=carriage_return) == split([data], carriage_return=carriage_return)


def test_a_long_line_in_small_pieces_is_copied_a_constant_number_of_times() -> None:
    """The partial line grows in place: one object for as long as it lasts, never rebuilt piece by piece."""
    splitter = LineSplitter(carriage_return=True)
    partial = splitter._partial
    for _ in range(100_000):
        assert splitter.feed(b"0123456789") == []
    assert splitter._partial is partial
    assert len(splitter.feed(b"\n")[0]) == 1_000_000
