"""Names sort as they were written, strangers are ignored, the lock tells the living from the dead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.spool.segment import Segment, adopted, lock, parse_name, scan

word = st.from_regex(r"[A-Za-z0-9_.]+", fullmatch=True)


@given(st.lists(word, min_size=1, max_size=3).map("-".join), word, st.integers(0, 10**8))
def test_names_round_trip(worker: str, boot: str, seq: int) -> None:
    segment = Segment(worker, boot, seq)
    assert parse_name(segment.filename) == segment


@pytest.mark.parametrize(
    "name", ["", "x.jsonl", "w-b-1.jsonl", "w-b-000001.jsonl.tmp", "w-b-0000001.jsonl", "quarantine.jsonl", "-b-000001.jsonl"]
)
def test_strangers_are_no_segments(name: str) -> None:
    assert parse_name(name) is None


def test_the_long_records_of_a_start_belong_to_it() -> None:
    assert Segment("w", "b", 3).run == Segment("w", "b.long", 1).run == "w-b"
    assert Segment("w", "c.long", 1).run != Segment("w", "b", 1).run


def test_scan_sorts_by_number_and_skips_strangers(tmp_path: Path) -> None:
    for seq in (1_000_000, 2, 1):
        (tmp_path / Segment("w", "b", seq).filename).write_bytes(b"x" * seq if seq < 10 else b"")
    (tmp_path / "notes.txt").touch()
    assert scan(tmp_path) == {Segment("w", "b", 1): 1, Segment("w", "b", 2): 2, Segment("w", "b", 1_000_000): 0}
    assert [s.seq for s in scan(tmp_path)] == [1, 2, 1_000_000]
    assert scan(tmp_path / "missing") == {}


def test_a_locked_segment_is_not_adopted_and_an_adopted_one_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    assert lock(fd)
    with adopted(path) as mine:
        assert not mine
    os.close(fd)
    with adopted(path) as mine, adopted(path) as theirs:
        assert mine
        assert not theirs
    with adopted(tmp_path / "gone") as mine:
        assert mine
