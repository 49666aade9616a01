"""Long records: written by a thread, told when they are, never waited for without end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import orjson
import pytest

from llmtap.core.errors import SpoolError
from llmtap.spool.direct import DirectWriter
from llmtap.spool.long import _GROUP_BYTES, LongRecords
from llmtap.spool.reader import read
from llmtap.spool.segment import scan
from support.records import begin

BODY = orjson.dumps({"model": "m", "prompt": "x" * 200_000})


class Gate(DirectWriter):
    """A disk that stands still until it is let go."""

    writing, open = threading.Event(), threading.Event()
    broken = False
    groups: ClassVar[list[int]] = []

    def append_group(self, records: Sequence[Sequence[bytes]]) -> int:
        self.writing.set()
        assert self.open.wait(10)
        if self.broken:
            raise SpoolError("broken")
        self.groups.append(len(records))
        return super().append_group(records)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> type[Gate]:
    monkeypatch.setattr(Gate, "open", threading.Event())
    monkeypatch.setattr(Gate, "writing", threading.Event())
    monkeypatch.setattr(Gate, "broken", False)
    monkeypatch.setattr(Gate, "groups", [])
    return Gate


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def uids(folder: Path) -> list[str]:
    return [orjson.loads(r)["uid"] for s in scan(folder) for _, r in read(folder / s.filename) if isinstance(r, bytes)]


def test_records_are_written_in_their_order_into_files_of_their_own(tmp_path: Path) -> None:
    long = LongRecords(tmp_path, "w", "boot", 1_000_000)
    assert not tmp_path.exists() or not scan(tmp_path), "nothing to write, no file"
    handed = [long.put(begin(f"u{n}", BODY)) for n in range(9)]
    long.drain()
    assert all(p is not None and p.done for p in handed)
    assert uids(tmp_path) == [f"u{n}" for n in range(9)]
    assert {s.boot for s in scan(tmp_path)} == {"boot.long"} and len(scan(tmp_path)) > 1
    assert long.written == sum(scan(tmp_path).values())
    long.sync()
    long.close()


def test_whoever_waits_is_told_once(tmp_path: Path, gate: type[Gate]) -> None:
    long = LongRecords(tmp_path, "w", "boot", 1_000_000, writer=gate)
    pending = long.put(begin("u", BODY))
    assert pending is not None
    told: list[bool] = []
    pending.then(lambda: told.append(pending.done))
    assert not told
    gate.open.set()
    long.drain()
    assert told == [True]
    pending.then(lambda: told.append(False))
    assert told == [True, False], "who comes later is told at once"
    long.close()


def test_what_comes_while_it_writes_goes_with_the_next_write(tmp_path: Path, gate: type[Gate]) -> None:
    long = LongRecords(tmp_path, "w", "boot", 100_000_000, writer=gate)
    handed = [long.put(begin("u0", BODY))]
    assert gate.writing.wait(10)
    handed += [long.put(begin(f"u{n}", BODY)) for n in range(1, 30)]
    gate.open.set()
    long.drain()
    assert all(p is not None and p.done for p in handed)
    assert uids(tmp_path) == [f"u{n}" for n in range(30)]
    assert gate.groups[0] == 1 and sum(gate.groups) == 30
    assert max(gate.groups) == -(-_GROUP_BYTES // len(BODY)), "but not all of the memory there is"
    long.close()


def test_what_cannot_be_written_is_given_back(tmp_path: Path, gate: type[Gate]) -> None:
    gate.broken = True
    gate.open.set()
    long = LongRecords(tmp_path, "w", "boot", 1_000_000, writer=gate)
    record = begin("u", BODY)
    pending = long.put(record)
    long.drain()
    assert pending is not None and pending.done and list(long.failed) == [record] and long.written == 0
    long.close()


def test_a_disk_that_stands_still_gets_no_more(tmp_path: Path, gate: type[Gate]) -> None:
    clock = Clock()
    long = LongRecords(tmp_path, "w", "boot", 1_000_000, clock=clock, writer=gate)
    assert long.put(begin("u1", BODY)) is not None
    clock.now = 0.9
    assert long.put(begin("u2", BODY)) is not None
    clock.now = 1.1
    assert long.put(begin("u3", BODY)) is None
    gate.open.set()
    long.drain()
    assert long.put(begin("u4", BODY)) is not None, "it goes on"
    long.drain()
    assert uids(tmp_path) == ["u1", "u2", "u4"]
    long.close()


def test_memory_is_bounded(tmp_path: Path, gate: type[Gate]) -> None:
    body = b'"' + b"x" * 30_000_000 + b'"'
    long = LongRecords(tmp_path, "w", "boot", 100_000_000, clock=Clock(), writer=gate)
    handed = [long.put(begin(f"u{n}", body)) is not None for n in range(4)]
    assert handed == [True, True, False, False]
    gate.open.set()
    long.drain()
    long.close()
