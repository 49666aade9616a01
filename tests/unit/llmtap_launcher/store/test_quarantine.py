"""The quarantine: each bad line once, bounded, never in the way."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from llmtap_launcher.store import quarantine
from llmtap_launcher.store.quarantine import BadLine, Quarantine


def entries(directory: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in (directory / "quarantine.jsonl").read_bytes().splitlines()]


def test_lines_are_kept_whole_and_once(tmp_path: Path) -> None:
    bad = [BadLine("s-b-000001.jsonl", 10, "torn", b"\xffabc"), BadLine("s-b-000001.jsonl", 20, "version 2", b"{}")]
    place = Quarantine(tmp_path)
    place.add(bad[:1], "now")
    place.add(bad, "later")
    place.add([], "never")
    assert entries(tmp_path) == [
        {"at": "now", "segment": "s-b-000001.jsonl", "end": 10, "reason": "torn", "line": "�abc"},
        {"at": "later", "segment": "s-b-000001.jsonl", "end": 20, "reason": "version 2", "line": "{}"},
    ]
    assert place.path.stat().st_mode & 0o077 == 0


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_BYTES", 500)
    monkeypatch.setattr(quarantine, "MAX_LINE", 100)
    monkeypatch.setattr(quarantine, "_REMEMBERED", 5)
    place = Quarantine(tmp_path)
    for n in range(50):
        place.add([BadLine("s", n, "bad", b"x" * 1000)], "now")
    assert 500 <= place.path.stat().st_size < 1000
    assert {len(str(e["line"])) for e in entries(tmp_path)} == {100}


def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    Quarantine(tmp_path / "gone").add([BadLine("s", 1, "bad", b"x")], "now")
    assert not (tmp_path / "gone").exists()
