"""The status file: there when something changed, not too often, never half written."""

from __future__ import annotations

import os
from pathlib import Path

from llmtap_launcher.store.status import StatusFile, WriterStatus, read_status


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_written_on_change_and_as_a_heartbeat(tmp_path: Path) -> None:
    clock = Clock()
    file, status = StatusFile(tmp_path, clock), WriterStatus()

    def seen(after_s: float, **changes: object) -> tuple[float, int]:
        clock.now += after_s
        for name, value in changes.items():
            setattr(status, name, value)
        file.write(status)
        found = read_status(tmp_path)
        assert found is not None
        return found.at, found.ingested_records

    assert seen(0) == (1000.0, 0)
    assert seen(0.4, ingested_records=5) == (1000.0, 0), "not more often than every 500 ms"
    assert seen(0.1) == (1000.5, 5)
    assert seen(2) == (1000.5, 5), "nothing changed"
    assert seen(3) == (1005.5, 5), "heartbeat"
    assert seen(-100) == (905.5, 5), "the clock was set back"
    status.state = "stopped"
    file.write(status, now=True)
    found = read_status(tmp_path)
    assert found == WriterStatus(pid=os.getpid(), at=905.5, state="stopped", ingested_records=5)
    assert [p.name for p in tmp_path.iterdir()] == ["writer.json"]
    assert file.path.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_survived(tmp_path: Path) -> None:
    StatusFile(tmp_path / "gone").write(WriterStatus())
    assert read_status(tmp_path / "gone") is None


def test_what_is_not_ours_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "writer.json"
    for text in ("", "{", "[]", "5"):
        path.write_text(text)
        assert read_status(tmp_path) in (None, WriterStatus())
    path.write_text('{"pid": 7, "from_a_newer_version": 1}')
    assert read_status(tmp_path) == WriterStatus(pid=7)
