"""The frame: what is written reads back, nothing else passes for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.spool.frame import Bad, block_header, frame, unframe

payloads = st.binary().filter(lambda b: b"\n" not in b)


@given(payloads)
def test_what_was_framed_reads_back(json: bytes) -> None:
    assert unframe(frame(json)) == json


@given(payloads.filter(len), st.data())
def test_no_changed_byte_goes_unnoticed(json: bytes, data: st.DataObject) -> None:
    line = bytearray(frame(json))
    at = data.draw(st.integers(0, len(line) - 2))
    line[at] ^= data.draw(st.integers(1, 255))
    assert isinstance(unframe(bytes(line)), Bad)


@given(st.binary())
def test_any_line_is_a_record_or_bad(line: bytes) -> None:
    found = unframe(line + b"\n")
    assert isinstance(found, Bad) or frame(found) == line + b"\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\n", "not a record"),
        (b'{"v":1}\n', "not a record"),
        (b"00000000 +0 \n", "wrong length"),
        (b"00000000 5 {}\n", "wrong length"),
        (b"00000000 2 {}\n", "wrong checksum"),
        (frame(b"{}").upper(), "wrong checksum"),
    ],
)
def test_reasons(line: bytes, reason: str) -> None:
    assert unframe(line) == Bad(reason, len(line))


@pytest.mark.parametrize("around", [0, 4_060, 8_160, 99_990, 999_980])
def test_a_line_of_whole_blocks_is_a_line_like_any_other(around: int) -> None:
    for size in range(around, around + 60):
        json = b"x" * size
        head, spaces = block_header((json[:7], json[7:]), 4096)
        line = head + json + b" " * spaces + b"\n"
        assert len(line) % 4096 == 0 and spaces < 8192
        assert unframe(line) == json + b" " * spaces


def test_a_line_feed_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="one line"):
        frame(b"{\n}")
    with pytest.raises(ValueError, match="one line"):
        block_header((b"{", b"\n}"), 4096)


def test_cut_gives_plain_jsonl(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(frame(b'{"a": "b c"}') + frame(b"[1, 2]"))
    out = subprocess.run(["cut", "-d ", "-f3-", str(tmp_path / "s")], capture_output=True, check=True).stdout
    assert out == b'{"a": "b c"}\n[1, 2]\n'
