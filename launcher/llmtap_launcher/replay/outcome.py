"""What a run has in the database: its replies with what they are replies to, and both sides compared."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from difflib import SequenceMatcher
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

from llmtap.core.errors import LlmtapError
from llmtap_launcher.analysis.comparison import compare, reply_of
from llmtap_launcher.analysis.sides import Side
from llmtap_launcher.replay.chosen import run_tag
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.follow import explain
from llmtap_launcher.store.lock import WriterLock, acquired
from llmtap_launcher.store.options import Options
from llmtap_launcher.store.writer import Writer

_POLL_S = 0.1
_OF_RUN = "e.tags IS NOT NULL AND e.outcome <> 'open' AND EXISTS (SELECT 1 FROM json_each(e.tags) t WHERE t.value = :tag)"
#: the latest reply of a run to each request, those that went well first
_PAIRS = f"""
SELECT a.id, a.uid, b.id, b.uid, a.output_tip = b.output_tip FROM (
  SELECT e.id, e.uid, e.output_tip, json_extract(e.metadata_json, '$.replay_of') AS original,
    row_number() OVER (
      PARTITION BY json_extract(e.metadata_json, '$.replay_of') ORDER BY e.outcome NOT IN ('ok', 'cached'), e.id DESC
    ) AS place
  FROM exchanges e
  WHERE {_OF_RUN}
) b JOIN exchanges a ON a.uid = b.original WHERE b.place = 1 ORDER BY a.id
"""
#: words of two replies that are compared; of longer ones the first
_WORDS = 2000


def bring_in(directory: Path, database: Path, options: Options, run: str, wanted: int, patience_s: float = 15.0) -> int:
    """Waits until the database has `wanted` replies of a run, or the time is over; returns how many it has. Brings them in itself
    when no writer is at work. Raises LlmtapError."""
    end, pause = time.monotonic() + patience_s, Event()
    while True:
        with WriterLock(directory) as lock:
            if acquired(lock):
                with closing(Writer(directory, database, options=options)) as writer:
                    try:
                        writer.run_pass()
                    except (sqlite3.Error, OSError, LlmtapError) as error:
                        raise LlmtapError(explain(error, writer)) from error
        with closing(connect_ro(database)) as conn:
            have = stored(conn, run)
        if have >= wanted or time.monotonic() >= end:
            return have
        pause.wait(_POLL_S)


def stored(conn: sqlite3.Connection, run: str) -> int:
    """How many replies of a run (all, also those that failed) are in the database."""
    return int(conn.execute(f"SELECT count(*) FROM exchanges e WHERE {_OF_RUN}", {"tag": run_tag(run)}).fetchone()[0])


def pairs(conn: sqlite3.Connection, run: str) -> list[tuple[int, str, int, str, int | None]]:
    """Of each request that a run has a reply to: number and uid as captured, number and uid as sent again, whether the first
    choices are the same to the last character (None: one of them is not stored)."""
    return [tuple(row) for row in conn.execute(_PAIRS, {"tag": run_tag(run)})]


def compared(conn: sqlite3.Connection, run: str, shown: int = 3, seed: int = 0) -> dict[str, Any]:
    """`compare` of both sides of a run, and `run`, `replies` (`count`, `same`, `similarity`: the median share of words that two
    replies have in common in their order, 1 for the same). Raises LlmtapError for a run without replies."""
    found = pairs(conn, run)
    if not found:
        raise LlmtapError(f"there are no replies of a run {run!r} in the database")
    before = Side("as captured", Selection(uids=[pair[1] for pair in found]))
    again = Side("sent again", Selection(uids=[pair[3] for pair in found]))
    ids = [(pair[0], pair[2]) for pair in found]
    shares = [share for pair in found if (share := _alike(conn, pair)) is not None]
    return {
        "run": run,
        **compare(conn, before, again, pairs=shown, seed=seed, matched=ids),
        "replies": {
            "count": len(found),
            "same": sum(pair[4] == 1 for pair in found),
            "similarity": median(shares) if shares else None,
        },
    }


def _alike(conn: sqlite3.Connection, pair: tuple[int, str, int, str, int | None]) -> float | None:
    if pair[4] is None:
        return None
    if pair[4]:
        return 1.0
    left, right = ((reply_of(conn, number) or "").split()[:_WORDS] for number in (pair[0], pair[2]))
    return SequenceMatcher(None, left, right, autojunk=False).ratio()
