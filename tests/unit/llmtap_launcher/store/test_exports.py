"""A row of `exports`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.exports import Export, insert


def test_a_row(tmp_path: Path) -> None:
    with closing(open_writer(tmp_path / "c.db")) as conn:
        insert(conn, Export("2026-11-21T00:00:00.000Z", "raw", "1", 4, "ab", {"files": []}))
        assert conn.execute("SELECT at, format, sql, rows, sha256, manifest_json FROM exports").fetchall() == [
            ("2026-11-21T00:00:00.000Z", "raw", "1", 4, "ab", '{"files":[]}')
        ]
