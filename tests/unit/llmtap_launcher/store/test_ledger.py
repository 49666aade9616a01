"""The ledger: offsets that live and die with their transaction, and what is settled when files are gone."""

from __future__ import annotations

import sqlite3

from llmtap.spool.segment import Segment
from llmtap_launcher.store.ledger import Ledger, Progress

ONE, TWO = Segment("w", "b", 1), Segment("w", "b", 2)


def test_progress_is_remembered_across_connections(conn: sqlite3.Connection) -> None:
    ledger = Ledger(conn)
    progress = ledger.progress(ONE)
    assert progress == Progress(ONE)
    progress.offset, progress.records, progress.bad = 100, 3, 1
    ledger.save(progress, "t1")
    assert ledger.progress(ONE) is progress
    assert Ledger(conn).progress(ONE) == progress
    progress.finished = True
    ledger.save(progress, "t2")
    assert Ledger(conn).progress(ONE).finished
    row = ("w-b-000001.jsonl", "w", 100, 3, 1, "t2")
    assert conn.execute("SELECT * FROM segments").fetchall() == [row]
    progress.finished = False
    ledger.save(progress, "t3")
    assert not Ledger(conn).progress(ONE).finished


def test_a_missing_file_is_done(conn: sqlite3.Connection) -> None:
    ledger = Ledger(conn)
    for segment in (ONE, TWO):
        ledger.save(ledger.progress(segment), "t1")
    ledger.settle({TWO}, "t2")
    assert conn.execute("SELECT name, finished_at FROM segments ORDER BY name").fetchall() == [
        (ONE.filename, "t2"),
        (TWO.filename, None),
    ]


def test_only_boots_without_any_segment_lose_their_open_exchanges(conn: sqlite3.Connection) -> None:
    conn.execute(
        "INSERT INTO exchanges(uid, outcome, boot) VALUES ('a', 'open', 'w-b'), ('b', 'ok', 'w-b'), ('c', 'open', 'w-other'), "
        "('d', 'open', NULL), ('e', 'client_abort', 'w-other')"
    )
    ledger = Ledger(conn)
    assert ledger.settle({TWO}, "t") == 2
    assert ledger.settle({TWO}, "t") == 0
    assert conn.execute("SELECT group_concat(outcome, ' ') FROM (SELECT outcome FROM exchanges ORDER BY id)").fetchone() == (
        "open ok lost lost client_abort",
    )
    assert ledger.settle(set(), "t") == 1
