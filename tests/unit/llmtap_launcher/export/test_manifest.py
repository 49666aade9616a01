"""What was exported stands in the table `exports`, whoever writes it."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from llmtap_launcher.export import manifest
from llmtap_launcher.export.manifest import keep
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.writer import Writer
from support.captures import Captures
from support.wait import eventually

MANIFEST: dict[str, Any] = {
    "format": "raw",
    "selection": "1",
    "files": [{"name": "a", "rows": 3, "bytes": 9, "sha256": "ab"}, {"name": "b", "rows": 1, "bytes": 3, "sha256": "cd"}],
}


def rows(db: Path) -> list[Any]:
    with closing(sqlite3.connect(db)) as conn:
        return conn.execute("SELECT format, sql, rows, sha256, manifest_json FROM exports").fetchall()


def test_here_when_no_writer_is_at_work(captures: Captures) -> None:
    assert keep(captures.folder, captures.db, MANIFEST) is None
    ((form, sql, count, sha, json),) = rows(captures.db)
    assert (form, sql, count, sha, orjson.loads(json)) == ("raw", "1", 4, "ab", MANIFEST)


def test_by_the_writer_at_work(captures: Captures) -> None:
    with WriterLock(captures.folder) as lock, closing(Writer(captures.folder)) as writer:
        assert lock.acquire()
        writer.run_pass()
        done: list[str | None] = []
        asking = threading.Thread(target=lambda: done.append(keep(captures.folder, captures.db, MANIFEST)))
        asking.start()
        eventually(lambda: (writer.maintain(), done)[1] or None, "the writer takes the export in")
        asking.join()
    assert done == [None] and len(rows(captures.db)) == 1


def test_a_writer_that_does_not_answer(captures: Captures, monkeypatch: Any) -> None:
    monkeypatch.setattr(manifest, "_PATIENCE_S", 0.1)
    with WriterLock(captures.folder) as lock:
        assert lock.acquire()
        assert "does not answer" in (keep(captures.folder, captures.db, MANIFEST) or "")
    assert rows(captures.db) == []
    assert not any((captures.folder / "requests").glob("*.json"))


def test_a_database_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "capture.db").write_text("no database at all, and long enough to be taken for one")
    assert keep(tmp_path, tmp_path / "capture.db", MANIFEST) is not None
