"""The table `exports`: what was exported, when, by which query, and the hash of the file."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Export:
    """A row of `exports`. `sql`: the selection as SQL; `manifest`: everything else, as JSON."""

    at: str
    format: str
    sql: str
    rows: int
    sha256: str
    manifest: dict[str, Any] = field(default_factory=dict)


def insert(conn: sqlite3.Connection, export: Export) -> None:
    """Stores it, through the writing connection."""
    conn.execute(
        "INSERT INTO exports(at, format, sql, rows, sha256, manifest_json) VALUES (?, ?, ?, ?, ?, ?)",
        (export.at, export.format, export.sql, export.rows, export.sha256, orjson.dumps(export.manifest).decode()),
    )
