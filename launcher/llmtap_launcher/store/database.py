"""Opening the capture database: for the one writer, and read-only for everyone else.

SQLite before 3.51.3 can corrupt a WAL that two connections reset, hence: one connection writes and checkpoints, the
writer's; all others come from `connect_ro`.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlite_utils import Database

from llmtap.core.errors import LlmtapError
from llmtap_launcher.store.migrations import migrations

#: the write-ahead log is cut back to this after a checkpoint, and truncated by one when it has grown beyond
WAL_BYTES = 64_000_000


class StoreError(LlmtapError):
    """The capture database cannot be used. `str()` is one line: file, what is wrong, how to mend it."""


class NewerSchema(StoreError):
    """A database of a newer llmtap."""


def connect_ro(path: Path, *, timeout_s: float = 5.0) -> sqlite3.Connection:
    """A read-only connection (`mode=ro`, `query_only`) with `sqlite3.Row` rows. The caller closes it.

    Raises StoreError when the file is missing or is not a database.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no such database")
    conn = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=timeout_s)
    try:
        conn.execute("PRAGMA query_only = 1")
        conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.Error as error:
        conn.close()
        raise StoreError(f"{path}: cannot be read: {error}") from error
    conn.row_factory = sqlite3.Row
    return conn


def open_writer(path: Path) -> sqlite3.Connection:
    """The writing connection, its database made or migrated as needed. Call it only under the writer's lock.

    Autocommit mode: the caller says BEGIN and COMMIT. Raises StoreError for a database of a newer llmtap,
    sqlite3.Error for everything SQLite refuses.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
    with closing(sqlite3.connect(path, isolation_level=None)) as first:
        # takes effect only before the first table, and before the write-ahead log
        first.execute("PRAGMA auto_vacuum = INCREMENTAL")
        first.execute("PRAGMA journal_mode = WAL")
        db = Database(first)
        newer = {m.name for m in migrations.applied(db)} - _names()
        if newer:
            raise NewerSchema(
                f"{path}: made by a newer llmtap (it has {', '.join(sorted(newer))}): "
                "upgrade llmtap, or move the file away and a new one is begun"
            )
        migrations.apply(db)
    conn = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    conn.execute("PRAGMA synchronous = FULL")  # a segment is deleted once its rows are durable
    conn.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    conn.execute("PRAGMA cache_size = -65536")
    conn.execute("PRAGMA temp_store = MEMORY")
    return conn


def outdated(path: Path) -> bool:
    """Is this a capture database of an earlier version? False for what is none, or cannot be read."""
    try:
        with closing(connect_ro(path)) as conn:
            applied = {name for (name,) in conn.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'llmtap'")}
    except (StoreError, sqlite3.Error):
        return False
    return bool(applied) and bool(_names() - applied)


def _names() -> set[str]:
    with closing(sqlite3.connect(":memory:")) as nothing:
        return {m.name for m in migrations.pending(Database(nothing))}
