"""One writer a folder, and the next as soon as it is gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmtap_launcher.store.lock import WriterLock


def test_one_at_a_time(tmp_path: Path) -> None:
    first, second = WriterLock(tmp_path / "new"), WriterLock(tmp_path / "new")
    assert first.holder() is None
    with first:
        assert first.acquire()
        assert not second.acquire()
        assert second.holder() == os.getpid()
        assert first.path.stat().st_mode & 0o077 == 0
    with second:
        assert second.acquire()
    second.release()


def test_a_stale_file_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "writer.lock").write_text("99999999 and more\n")
    with WriterLock(tmp_path) as lock:
        assert lock.acquire()
        assert lock.holder() == os.getpid()


def test_an_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists"):
        WriterLock(tmp_path / "file").acquire()
