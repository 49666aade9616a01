"""Conversations and statistics for a database of an earlier version, or after a change of what they are made of: from its own
rows."""

from __future__ import annotations

import sqlite3
from typing import Any

import orjson

from llmtap_launcher.store.canonical import Body, asked_words, loose
from llmtap_launcher.store.conversations import Conversations
from llmtap_launcher.store.rollups import COLUMNS, Rollups

_NEEDED = tuple(dict.fromkeys([*COLUMNS, *"id uid started_us input_tip output_tip conversation_id endpoint".split()]))
_FLUSH = 5000
_CHAIN = """
WITH RECURSIVE up(parent_id, depth, body_id, hash) AS (
  SELECT parent_id, depth, body_id, hash FROM messages WHERE hash = ?
  UNION ALL
  SELECT m.parent_id, m.depth, m.body_id, m.hash FROM messages m JOIN up ON m.id = up.parent_id
)
SELECT up.hash, b.hash, b.role, b.text FROM up JOIN bodies b ON b.id = up.body_id ORDER BY up.depth
"""


def backfill(conn: sqlite3.Connection) -> None:
    """Fills `conversations`, `usage_daily` and `latency_hist`, in the caller's transaction. They must be empty."""
    conversations, rollups = Conversations(conn), Rollups(with_digests=False)
    rows = conn.execute(
        f"SELECT {', '.join(_NEEDED)} FROM exchanges ORDER BY started_us, uid"
    )  # sorted, so read whole before the first row is changed
    for at, values in enumerate(rows):
        row: dict[str, Any] = dict(zip(_NEEDED, values, strict=True)) | {"loose_input": None, "loose_tip": None}
        timing = conn.execute("SELECT deltas FROM token_timings WHERE exchange_id = ?", (row["id"],)).fetchone()
        rollups.add(row, orjson.loads(timing[0])[1:] if timing is not None else ())
        if row["input_tip"] is not None and row["started_us"] is not None:
            _place(conn, conversations, row)
        if at % _FLUSH == _FLUSH - 1:
            rollups.flush(conn)
    rollups.flush(conn)


def fill_digests(conn: sqlite3.Connection) -> None:
    """Fills `digests`, in the caller's transaction. It must be empty."""
    rollups = Rollups()
    rows = conn.execute(
        f"SELECT t.deltas, {', '.join(COLUMNS)} FROM exchanges e LEFT JOIN token_timings t ON t.exchange_id = e.id "
        "ORDER BY started_at"
    )
    for at, (deltas, *values) in enumerate(rows):
        rollups.add(dict(zip(COLUMNS, values, strict=True)), orjson.loads(deltas)[1:] if deltas else ())
        if at % _FLUSH == _FLUSH - 1:
            rollups.flush_digests(conn)
    rollups.flush_digests(conn)


def _place(conn: sqlite3.Connection, conversations: Conversations, row: dict[str, Any]) -> None:
    chain = conn.execute(_CHAIN, (row["input_tip"],)).fetchall()
    if not chain:
        return
    bodies = [Body(found[1], found[2], found[3], None) for found in chain]
    # every message may have been stored before this exchange: looking for what is not there costs time, no more
    conversations.place(row, bodies, [found[0] for found in chain], len(chain), None)
    row["loose_tip"] = asked_words(bodies)
    reply = conn.execute(
        "SELECT b.hash, b.role, b.text FROM messages m JOIN bodies b ON b.id = m.body_id WHERE m.hash = ?", (row["output_tip"],)
    ).fetchone()
    if reply is not None:
        row["loose_tip"] = loose(row["loose_tip"], Body(reply[0], reply[1], reply[2], None))
    conn.execute(
        "UPDATE exchanges SET conversation_id = ?, loose_input = ?, loose_tip = ? WHERE id = ?",
        (row["conversation_id"], row["loose_input"], row["loose_tip"], row["id"]),
    )
