"""Copies: of one moment, whole or not at all, and they open where nothing can be written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmtap_launcher.store.backup import backup
from llmtap_launcher.store.checksum import checksums
from llmtap_launcher.store.database import StoreError, connect_ro, open_writer
from support.captures import Captures, weather


def test_a_copy_of_a_live_database(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures:
        weather(captures)
        seen: list[tuple[int, int]] = []
        size = backup(captures.db, tmp_path / "copy.db", lambda done, all_: seen.append((done, all_)))
        with closing(connect_ro(captures.db)) as live:
            expected = checksums(live)
        captures.exchange([{"role": "user", "content": "afterwards"}], "ok")
        captures.store()
    copy = tmp_path / "copy.db"
    assert size == copy.stat().st_size
    assert seen[-1][0] == seen[-1][1] > 0
    assert copy.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in tmp_path.iterdir() if "copy" in p.name) == ["copy.db"]
    with closing(sqlite3.connect(f"file:{copy}?mode=ro&immutable=1", uri=True)) as conn:
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert checksums(conn) == expected
    with closing(open_writer(copy)) as conn:  # and a writer takes it as it is
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_refusals(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures:
        (tmp_path / "there.db").touch()
        with pytest.raises(StoreError, match=r"there\.db: exists already"):
            backup(captures.db, tmp_path / "there.db")
        with pytest.raises(StoreError, match="no such folder"):
            backup(captures.db, tmp_path / "no" / "c.db")
        with pytest.raises(StoreError, match="no such database"):
            backup(tmp_path / "no.db", tmp_path / "c.db")
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_a_damaged_database_gives_no_copy(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures:
        for n in range(300):
            captures.exchange([{"role": "user", "content": f"question {n} " * 50}], "answer")
        captures.store()
    data = bytearray((tmp_path / "capture.db").read_bytes())
    for page in range(40, 60):
        data[page * 4096 : page * 4096 + 4096] = b"\xff" * 4096
    (tmp_path / "capture.db").write_bytes(data)
    with pytest.raises((StoreError, sqlite3.DatabaseError)):
        backup(tmp_path / "capture.db", tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
