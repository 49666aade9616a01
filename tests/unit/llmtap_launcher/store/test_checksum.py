"""Equal for the same records whatever they are numbered; different for any other value."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmtap_launcher.store.checksum import checksums, rows
from llmtap_launcher.store.database import open_writer
from support.captures import Captures, weather

THEIRS = ("sqlite_", "_sqlite_", "bodies_fts", "exports")  # nothing of it comes from the spool


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with Captures(folder) as captures:
        weather(captures)
    return folder / "capture.db"


def test_every_table_has_one(made: Path) -> None:
    with closing(open_writer(made)) as conn:
        names = {n for (n,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'") if not n.startswith(THEIRS)}
        assert checksums(conn).keys() == names
        assert checksums(conn)["exchanges"].startswith("3 rows, ")


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("exchanges", "UPDATE exchanges SET ttft_ms = ttft_ms + 1 WHERE id = 1"),
        ("exchanges", "UPDATE exchanges SET conversation_id = NULL WHERE id = 3"),
        ("messages", "UPDATE messages SET parent_id = NULL WHERE id = 2"),
        ("bodies", "UPDATE bodies SET text = text || '!' WHERE text IS NOT NULL"),
        ("token_timings", "UPDATE token_timings SET deltas = '[1]'"),
        ("conversations", "UPDATE conversations SET n = 4"),
        ("segments", "UPDATE segments SET finished_at = 'now'"),
    ],
)
def test_a_change_shows(made: Path, tmp_path: Path, table: str, change: str) -> None:
    shutil.copy(made, tmp_path / "c.db")
    with closing(open_writer(tmp_path / "c.db")) as conn:
        before = checksums(conn)
        conn.execute(change)
        after = checksums(conn)
    assert before[table] != after[table]
    assert {t for t in before if before[t] != after[t]} <= {table, "exchanges"}


def test_numbers_do_not_count(made: Path, tmp_path: Path) -> None:
    shutil.copy(made, tmp_path / "c.db")
    with closing(open_writer(tmp_path / "c.db")) as conn:
        before = checksums(conn)
        conn.execute("PRAGMA foreign_keys = 0")
        conn.executescript(
            "UPDATE token_timings SET exchange_id = exchange_id + 100; UPDATE exchanges SET id = id + 100, conversation_id = 70; "
            "UPDATE conversations SET id = 70; UPDATE messages SET id = id + 100, parent_id = parent_id + 100, body_id "
            "= body_id + 100; "
            "UPDATE bodies SET id = id + 100"
        )
        assert checksums(conn) == before
        conn.row_factory = sqlite3.Row
        assert rows(conn, "conversations")[0][4] == 3
