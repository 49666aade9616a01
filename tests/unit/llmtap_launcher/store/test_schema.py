"""Every table and column has its words, and no words are left over."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.schema import COLUMNS, TABLES

#: SQLite's and sqlite-utils' own
_THEIRS = ("sqlite_", "_sqlite_", "bodies_fts_")


def columns(conn: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in conn.execute(f"PRAGMA table_xinfo({table})") if row[6] != 1}


def test_all_is_described(tmp_path: Path) -> None:
    with closing(open_writer(tmp_path / "c.db")) as conn:
        names = {
            n
            for (n,) in conn.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
            if not n.startswith(_THEIRS)
        }
        assert names == TABLES.keys() == COLUMNS.keys()
        for name in names - {"requests"}:
            assert columns(conn, name) == COLUMNS[name].keys(), name
        assert columns(conn, "requests") <= COLUMNS["requests"].keys()
