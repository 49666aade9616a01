"""What an exchange cost, in whole billionths of a dollar, and the row of `prices` that says so (the rates:
`llmtap.policy.pricing`).

A price by the GPU hour is not known per request: see `gpu_hours`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from llmtap.policy.pricing import Rate, RateBook, cost_of


class Prices:
    """Finds rates for exchanges and keeps their rows, through the writer's connection, in the caller's transaction."""

    def __init__(self, conn: sqlite3.Connection, own: Sequence[Rate] = (), urls: Mapping[str, str] | None = None) -> None:
        self._conn = conn
        self._book = RateBook(own, urls)
        self._rows: dict[Rate, int] = {}

    def forget(self) -> None:
        """Rows may be gone: after a rollback."""
        self._rows.clear()

    def cost(self, row: Mapping[str, Any]) -> tuple[int | None, int | None]:
        """(`cost_nanousd`, `price_id`) of a row of `exchanges`. No price or no tokens: None."""
        if row["prompt_tokens"] is None and row["completion_tokens"] is None:
            return None, None
        day = (row["started_at"] or "")[:10]
        rate = self._book.rate(row["model_response"], row["model_requested"], row["backend"], day)
        if rate is None:
            return None, None
        ident = self._rows.get(rate)
        if ident is None:
            ident = self._rows[rate] = self._row(rate)
        if row["outcome"] == "cached" or row["cache"] in ("hit", "shared"):
            return 0, ident  # our own cache answered
        return cost_of(rate, row["prompt_tokens"] or 0, row["completion_tokens"] or 0, row["cached_tokens"] or 0), ident

    def _row(self, rate: Rate) -> int:
        values = astuple(rate)
        found = self._conn.execute(
            "SELECT id FROM prices WHERE provider = ? AND model_glob = ? AND valid_from IS ? AND in_nano IS ? AND out_nano IS ? "
            "AND cached_nano IS ? AND gpu_hour_nano IS ?",
            values,
        ).fetchone()
        if found is not None:
            return int(found[0])
        ident = self._conn.execute(
            "INSERT INTO prices(provider, model_glob, valid_from, in_nano, out_nano, cached_nano, gpu_hour_nano) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            values,
        ).lastrowid
        assert ident is not None
        return ident
