"""Costs of models priced by the hour of their machine: an hour's price, shared among its requests by their tokens.

What an hour's tokens cost is known when the hour is over, so until then such exchanges have a `price_id` and no cost. A
request that comes late (its stream ran on) has its hour shared out again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from llmtap_launcher.store.rollups import COLUMNS, Rollups

_UNSETTLED = (
    "SELECT DISTINCT substr(started_at, 1, 13), backend, price_id FROM exchanges "
    "WHERE price_id IS NOT NULL AND cost_nanousd IS NULL AND started_at < ? AND outcome <> 'open' "
    "AND price_id IN (SELECT id FROM prices WHERE gpu_hour_nano IS NOT NULL) ORDER BY 1 LIMIT ?"
)
_IN_HOUR = (
    f"SELECT id, {', '.join(COLUMNS)} FROM exchanges WHERE started_at >= :hour AND started_at < :hour || '~' "
    "AND backend IS :backend AND price_id = :price AND outcome NOT IN ('open', 'cached') "
    "AND coalesce(cache, '') NOT IN ('hit', 'shared') ORDER BY id"  # a cache's replies took nothing of the machine
)


def settle_hours(conn: sqlite3.Connection, before: str, at_once: int = 24) -> int:
    """Gives costs to exchanges of hours before `before` (`2026-11-21T09`), `at_once` hours at most, in the caller's transaction.
    Returns how many hours."""
    hours = conn.execute(_UNSETTLED, (before, at_once)).fetchall()
    rollups = Rollups()
    for hour, backend, price in hours:
        (nano,) = conn.execute("SELECT gpu_hour_nano FROM prices WHERE id = ?", (price,)).fetchone()
        rows = [
            dict(zip(("id", *COLUMNS), tuple(row), strict=True))
            for row in conn.execute(_IN_HOUR, {"hour": hour, "backend": backend, "price": price})
        ]
        tokens = [(row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0) for row in rows]
        for row, cost in zip(rows, shares(nano, tokens), strict=True):
            if row["cost_nanousd"] != cost:
                # only the cost moves: an exchange taken out and put in again would need its gaps
                rollups.cost(row, cost - (row["cost_nanousd"] or 0))
                conn.execute("UPDATE exchanges SET cost_nanousd = ? WHERE id = ?", (cost, row["id"]))
    rollups.flush(conn)
    return len(hours)


def shares(total: int, weights: list[int]) -> Iterator[int]:
    """`total` split in whole numbers as the weights are, without a remainder; equally when none weighs anything."""
    if not any(weights):
        weights = [1] * len(weights)
    whole, seen, given = sum(weights), 0, 0
    for weight in weights:
        seen += weight
        upto = total * seen // whole
        yield upto - given
        given = upto
