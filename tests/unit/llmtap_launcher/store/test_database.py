"""Opening: a fresh database has the settings that cannot be given later, a newer one is refused, readers cannot write."""

from __future__ import annotations

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmtap_launcher.store.database import NewerSchema, StoreError, connect_ro, open_writer, outdated


def test_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "c.db"
    with closing(open_writer(path)) as conn:
        pragmas = {name: conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("auto_vacuum", "journal_mode", "synchronous")}
        assert pragmas == {"auto_vacuum": 2, "journal_mode": "wal", "synchronous": 2}
        assert path.stat().st_mode & 0o077 == 0
        conn.execute("INSERT INTO exchanges(uid, outcome) VALUES ('u', 'open')")
    with closing(open_writer(path)) as conn:
        assert conn.execute("SELECT uid FROM exchanges").fetchall() == [("u",)]


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with closing(open_writer(path)) as conn:
        conn.execute("INSERT INTO _sqlite_migrations(migration_set, name, applied_at) VALUES ('llmtap', 'm999_future', 'now')")
    with pytest.raises(NewerSchema, match=r"made by a newer llmtap \(it has m999_future\): upgrade llmtap") as caught:
        open_writer(path)
    assert "\n" not in str(caught.value)


def test_something_else_is_an_sqlite_error(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        open_writer(tmp_path / "c.db")


def test_readers_see_commits_and_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "a b?.db"
    with closing(open_writer(path)) as writer, closing(connect_ro(path)) as reader:
        assert reader.execute("SELECT count(*) AS n FROM exchanges").fetchone()["n"] == 0
        writer.execute("INSERT INTO exchanges(uid, outcome) VALUES ('u', 'open')")
        assert reader.execute("SELECT count(*) AS n FROM exchanges").fetchone()["n"] == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM exchanges")
    with closing(connect_ro(path)) as reader:
        assert reader.execute("SELECT uid FROM requests").fetchone()["uid"] == "u"


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such database"):
        connect_ro(tmp_path / "gone.db")
    (tmp_path / "text").write_text("x" * 4096)
    with pytest.raises(StoreError, match="cannot be read: file is not a database"):
        connect_ro(tmp_path / "text")


def test_which_databases_are_out_of_date(tmp_path: Path) -> None:
    old = next((Path(__file__).parents[4] / "fixtures" / "databases").glob("*.db.gz"))
    (tmp_path / "old.db").write_bytes(gzip.decompress(old.read_bytes()))
    (tmp_path / "none.db").write_bytes(b"not a database" * 100)
    sqlite3.connect(tmp_path / "empty.db").close()
    assert outdated(tmp_path / "old.db")
    open_writer(tmp_path / "old.db").close()
    assert not any(outdated(tmp_path / name) for name in ("old.db", "none.db", "empty.db", "gone.db"))
