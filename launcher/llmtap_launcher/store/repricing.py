"""Costs computed anew: after prices were changed, or came late. By the writer, in small transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtap.policy.pricing import Rate
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.gpu_hours import settle_hours
from llmtap_launcher.store.pricing import Prices
from llmtap_launcher.store.rollups import COLUMNS, Rollups

_BATCH = 2000
_HOURS = 24


@dataclass(slots=True)
class Repriced:
    """What came of it: exchanges looked at and those with another cost or price, and the sums of all (nano-dollars) before and
    after."""

    exchanges: int = 0
    changed: int = 0
    before_nano: int = 0
    after_nano: int = 0


def reprice(
    conn: sqlite3.Connection, rates: Sequence[Rate], urls: Mapping[str, str], selection: Selection, before_hour: str
) -> Repriced:
    """Gives every exchange of a selection the cost that `rates` and the list prices make. Outside of any transaction.

    Hours of machines are shared out again for hours before `before_hour` (`2026-11-21T09`). Raises sqlite3.Error; whole batches
    are done then.
    """
    out = Repriced()
    where, values = selection.where()
    prices = Prices(conn, rates, urls)
    after, by_hour = 0, False
    while True:
        rows = conn.execute(
            f"SELECT id, {', '.join(COLUMNS)} FROM exchanges e WHERE e.id > :after AND e.outcome <> 'open' AND {where} "
            f"ORDER BY e.id LIMIT {_BATCH}",
            {**values, "after": after},
        ).fetchall()
        if not rows:
            break
        conn.execute("BEGIN IMMEDIATE")
        try:
            by_hour |= _batch(conn, prices, [dict(zip(("id", *COLUMNS), tuple(row), strict=True)) for row in rows], out)
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
        after = rows[-1][0]
    while by_hour:
        conn.execute("BEGIN IMMEDIATE")
        by_hour = settle_hours(conn, before_hour, _HOURS) == _HOURS
        conn.execute("COMMIT")
    out.after_nano = _sum(conn, where, values)
    return out


def _batch(conn: sqlite3.Connection, prices: Prices, rows: Sequence[dict[str, Any]], out: Repriced) -> bool:
    """Whether any of them is now paid by the hour."""
    rollups, changes, by_hour = Rollups(), [], False
    for row in rows:
        out.exchanges += 1
        out.before_nano += row["cost_nanousd"] or 0
        cost, price = prices.cost(row)
        if price is not None and cost is None:
            if price == row["price_id"]:
                continue  # by the hour, at the same price
            by_hour = True
        if (cost, price) != (row["cost_nanousd"], row["price_id"]):
            out.changed += 1
            rollups.rebill(row, {**row, "cost_nanousd": cost, "price_id": price})
            changes.append((cost, price, row["id"]))
    conn.executemany("UPDATE exchanges SET cost_nanousd = ?, price_id = ? WHERE id = ?", changes)
    rollups.flush(conn)
    return by_hour


def _sum(conn: sqlite3.Connection, where: str, values: Mapping[str, Any]) -> int:
    return int(
        conn.execute(
            f"SELECT coalesce(sum(e.cost_nanousd), 0) FROM exchanges e WHERE e.outcome <> 'open' AND {where}", dict(values)
        ).fetchone()[0]
    )
