"""Walks up the tree of messages, over the edges of blocks."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from llmtap_launcher.export import paths
from llmtap_launcher.export.paths import Paths


def tree(conn: sqlite3.Connection, parents: dict[int, int | None]) -> Paths:
    conn.execute("CREATE TABLE messages(id INTEGER PRIMARY KEY, parent_id INTEGER, body_id INTEGER)")
    conn.executemany("INSERT INTO messages VALUES (?, ?, ?)", [(ident, parent, ident * 10) for ident, parent in parents.items()])
    return Paths(conn)


def test_a_walk_over_blocks() -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        walk = tree(conn, {1: None, 2: 1, 511: 2, 512: 511, 513: 512, 5000: 513, 5001: 2})
        assert walk.to(5000) == ([1, 2, 511, 512, 513, 5000], [10, 20, 5110, 5120, 5130, 50000])
        assert walk.to(5001) == ([1, 2, 5001], [10, 20, 50010])
        assert walk.to(1) == ([1], [10])


def test_marks_end_where_another_went() -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        walk = tree(conn, {1: None, 2: 1, 3: 2, 600: 3, 601: 3})
        marks = bytearray(100)
        walk.mark(600, marks)
        assert {i for i in range(800) if marks[i >> 3] >> (i & 7) & 1} == {1, 2, 3}
        walk.mark(601, marks)
        walk.mark(1, marks)
        assert {i for i in range(800) if marks[i >> 3] >> (i & 7) & 1} == {1, 2, 3}


def test_old_blocks_go(monkeypatch: object) -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        far = {n * 512 + 1: (n - 1) * 512 + 1 if n else None for n in range(20)}
        walk = tree(conn, far)
        before = paths._KEPT
        paths._KEPT = 4
        try:
            assert walk.to(19 * 512 + 1)[0] == sorted(far)
            assert len(walk._blocks) <= 4
        finally:
            paths._KEPT = before
