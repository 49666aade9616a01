"""Archived segments come back as they were, in the order they were written, for as long as they are kept."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import zstandard

from llmtap_launcher.store.archive import Archive, cutoff, unpack


def segment(folder: Path, name: str, content: bytes, age: float = 0) -> Path:
    path = folder / name
    path.write_bytes(content)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_there_and_back(tmp_path: Path) -> None:
    content = b"one line as good as another\n" * 50_000
    path = segment(tmp_path, "w0-b-000001.jsonl", content)
    kept = Archive(tmp_path / "data").add(path)
    assert path.read_bytes() == content
    assert kept.stat().st_size < len(content) / 50
    assert kept.stat().st_mode & 0o077 == 0
    back = unpack(kept, tmp_path / "back")
    assert (back.name, back.read_bytes()) == (path.name, content)
    assert Archive(tmp_path / "data").add(path) == kept, "again is no harm"


def test_the_order_is_that_of_writing(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    for name, age in (
        ("w0-late-000001.jsonl", 10),
        ("w0-early-000002.jsonl", 50),
        ("w0-early-000001.jsonl", 90),
        ("w1-x-000001.jsonl", 20),
    ):
        archive.add(segment(tmp_path, name, b"x", age))
    (archive.folder / "notes.txt").write_text("not ours")
    (archive.folder / "w0-b-000001.jsonl.tmp").write_text("half")
    assert [s.filename for s in archive.segments()] == [
        "w0-early-000001.jsonl",
        "w0-early-000002.jsonl",
        "w1-x-000001.jsonl",
        "w0-late-000001.jsonl",
    ]
    assert archive.expire(1_000_000 - 15) == 3
    assert [s.boot for s in archive.segments()] == ["late"]
    assert Archive(tmp_path / "none").segments() == {}
    assert cutoff(100 * 86_400, 3) == 97 * 86_400


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = segment(tmp_path, "w0-b-000001.jsonl", b"x")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Archive(tmp_path).add(path)
    assert list((tmp_path / "archive").iterdir()) == []


def test_a_damaged_file_gives_what_it_can(tmp_path: Path) -> None:
    kept = Archive(tmp_path).add(segment(tmp_path, "w0-b-000001.jsonl", os.urandom(3_000_000)))
    kept.write_bytes(kept.read_bytes()[:1_500_000])
    with contextlib.suppress(zstandard.ZstdError):
        unpack(kept, tmp_path / "back")
    assert (tmp_path / "back" / "w0-b-000001.jsonl").stat().st_size > 500_000
