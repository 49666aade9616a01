"""`docs/schema.md`, printed from a database that the migrations made. A test fails when the page is not what this prints."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from sqlite_utils import Database

from llmtap_launcher.store.migrations import migrations
from llmtap_launcher.store.schema import COLUMNS, TABLES

_HEAD = """\
# The capture database

`<capture.dir>/capture.db`, SQLite. This page is generated from the migrations (`make docs`).

One process writes to it (`llmtap up` runs it, or `llmtap ingest`); read it with whatever you like, while it is being
written too: `sqlite3 'file:llmtap-data/capture.db?mode=ro'`, Datasette, pandas. Do not write to it: SQLite's write-ahead
log has one writer here.
"""


def markdown() -> str:
    """The page."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        migrations.apply(Database(conn))
        return "\n".join([_HEAD, *(_section(conn, name) for name in TABLES)])


def _section(conn: sqlite3.Connection, name: str) -> str:
    (kind,) = conn.execute("SELECT type FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    lines = [
        f"## {name}{' (view)' if kind == 'view' else ''}",
        "",
        TABLES[name],
        "",
        "| column | type | meaning |",
        "|---|---|---|",
    ]
    for _, column, type_, _, _, key, hidden in conn.execute(f"PRAGMA table_xinfo({name})"):
        if hidden == 1:  # of a virtual table, for its own use
            continue
        shown = f"{type_}, primary key" if key else type_
        lines.append(f"| `{column}` | {shown} | {COLUMNS[name][column]} |")
    indexes = [
        sql.partition(" ON ")[2]
        for (sql,) in conn.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL ORDER BY rowid", (name,)
        )
    ]
    if indexes:
        lines += ["", "Indexes: " + ", ".join(f"`{index.removeprefix(name)}`" for index in indexes) + "."]
    return "\n".join([*lines, ""])
