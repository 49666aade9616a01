"""The reader: every whole record, whatever stands around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtap.spool.frame import Bad, frame
from llmtap.spool.reader import read

payloads = st.binary(max_size=60).filter(lambda b: b"\n" not in b)
junk = st.binary(max_size=60).filter(lambda b: b"\n" not in b and len(b) < 9)
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@one_folder
@given(st.lists(payloads), st.data())
def test_any_cut_gives_a_prefix_and_going_on_gives_the_rest(tmp_path: Path, records: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(frame, records))
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path / "s"
    path.write_bytes(whole[:cut])
    first = list(read(path))
    assert [r for _, r in first] == records[: len(first)]
    at = first[-1][0] if first else 0
    assert cut - at < max((len(frame(r)) for r in records), default=1)
    path.write_bytes(whole)
    assert [r for _, r in first] + [r for _, r in read(path, at)] == records


@one_folder
@given(st.binary(max_size=400))
def test_any_bytes_are_records_or_bad(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(data)
    found = list(read(path))
    assert len(found) == data.count(b"\n")
    assert [end for end, _ in found] == [i + 1 for i, b in enumerate(data) if b == 0x0A]


@one_folder
@given(st.lists(st.tuples(payloads, st.none() | junk)))
def test_damage_costs_only_the_damaged_lines(tmp_path: Path, lines: list[tuple[bytes, bytes | None]]) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"".join(frame(r) + (b"" if j is None else j + b"\n") for r, j in lines))
    found = [r for _, r in read(path)]
    assert [r for r in found if not isinstance(r, Bad)] == [r for r, _ in lines]
    assert sum(isinstance(r, Bad) for r in found) == sum(j is not None for _, j in lines)


def test_a_torn_tail_waits(tmp_path: Path) -> None:
    path = tmp_path / "s"
    line = frame(b'{"n":1}')
    path.write_bytes(line + line[:-1])
    ((end, _),) = read(path)
    with path.open("ab") as file:
        file.write(b"\n")
    assert list(read(path, end)) == [(2 * len(line), b'{"n":1}')]


def test_missing_file_and_offset_beyond_the_end_mean_done(tmp_path: Path) -> None:
    assert list(read(tmp_path / "gone")) == []
    (tmp_path / "s").write_bytes(frame(b"{}"))
    assert list(read(tmp_path / "s", 1000)) == []


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        list(read(tmp_path))
