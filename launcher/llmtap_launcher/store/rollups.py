"""`usage_daily`, `usage_hourly` and `latency_hist`: what an exchange adds to them, gathered for a batch and written once.

Percentiles over a million rows take seconds in SQL, and the rows go when they are old: these stay. What an exchange adds
is a plain function of its row, so a row that changes (a reply after all to what was lost) is taken out as it was and put in as
it is.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llmtap_launcher.store.latency import bucket

#: columns of `exchanges` that a contribution is made of
COLUMNS = (
    "started_at key_name model_requested model_response backend status outcome prompt_tokens completion_tokens cached_tokens "
    "cost_nanousd ttft_ms duration_ms queue_ms overhead_ms tokens_per_second"
).split()

_SCALARS = ("ttft_ms", "duration_ms", "queue_ms", "overhead_ms", "tokens_per_second")
_GOOD = ("ok", "cached")
#: gaps are integers of 0.1 ms: nearly all are found here
_GAPS = tuple(bucket(n / 10) for n in range(4096))

_UPSERT_USAGE = "INSERT INTO {} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET " + ", ".join(
    f"{c} = {c} + excluded.{c}"
    for c in ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "cost_nanousd")
)
_UPSERT_HIST = "INSERT INTO latency_hist VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n"

Usage = tuple[str, str, str, str]


def model_of(row: Mapping[str, Any]) -> str:
    """The name counted under: the served model. What no backend took is `other`: clients may name anything."""
    name = row["model_response"] or (row["model_requested"] if row["backend"] else None)
    return str(name or "other")


class Rollups:
    """Sums of the current batch. Not in the database before `flush`."""

    def __init__(self) -> None:
        self._usage: dict[Usage, list[int]] = {}
        self._hist: Counter[tuple[str, str, str, str, int]] = Counter()
        self._gaps: dict[tuple[str, str, str], Counter[int]] = {}

    def add(self, row: Mapping[str, Any], gaps: Sequence[int] = (), sign: int = 1) -> None:
        """Puts an exchange in, or takes it out (`sign` -1). `gaps`: between content events, 0.1 ms. Open ones count nothing."""
        outcome, at = row["outcome"], row["started_at"]
        if outcome == "open" or at is None:
            return
        key, model = row["key_name"] or "", model_of(row)
        status = row["status"]
        failed = outcome not in _GOOD or (status is not None and status >= 400)
        sums = self._usage.setdefault((at[:13], key, model, row["backend"] or ""), [0] * 6)
        sums[0] += sign
        sums[1] += sign * failed
        sums[2] += sign * (row["prompt_tokens"] or 0)
        sums[3] += sign * (row["completion_tokens"] or 0)
        sums[4] += sign * (row["cached_tokens"] or 0)
        sums[5] += sign * (row["cost_nanousd"] or 0)
        if outcome != "ok" or failed:
            return
        hour, hist = at[:13], self._hist
        for metric in _SCALARS:
            value = row[metric]
            if value is not None:
                hist[hour, model, key, metric, bucket(value)] += sign
        if gaps:
            counts = self._gaps.setdefault((hour, model, key), Counter())
            if sign > 0:
                counts.update(gaps)
            else:
                counts.subtract(gaps)

    def cost(self, row: Mapping[str, Any], more: int) -> None:
        """Adds to the cost of an exchange that is in already."""
        key = row["started_at"][:13], row["key_name"] or "", model_of(row), row["backend"] or ""
        self._usage.setdefault(key, [0] * 6)[5] += more

    def flush(self, conn: sqlite3.Connection) -> None:
        """Writes the sums, in the caller's transaction, and begins anew. Rows that came to nothing go."""
        for (hour, model, name), counts in self._gaps.items():
            for gap, n in counts.items():
                at_bucket = _GAPS[gap] if 0 <= gap < len(_GAPS) else bucket(gap / 10)
                self._hist[hour, model, name, "itl_ms", at_bucket] += n
        hourly = [(*key, *sums) for key, sums in self._usage.items() if any(sums)]
        daily = [(key[0][:10], *key[1:], *sums) for key, sums in self._usage.items() if any(sums)]
        hist = [(*key, n) for key, n in self._hist.items() if n]
        fewer_requests = any(sums[0] < 0 for sums in self._usage.values())
        fewer_values = any(n < 0 for n in self._hist.values())
        conn.executemany(_UPSERT_USAGE.format("usage_hourly"), hourly)
        conn.executemany(_UPSERT_USAGE.format("usage_daily"), daily)
        conn.executemany(_UPSERT_HIST, hist)
        if fewer_requests:
            conn.execute("DELETE FROM usage_hourly WHERE requests = 0")
            conn.execute("DELETE FROM usage_daily WHERE requests = 0")
        if fewer_values:
            conn.execute("DELETE FROM latency_hist WHERE n = 0")
        self.clear()

    def clear(self) -> None:
        """Forgets the batch: it was rolled back."""
        self._usage.clear()
        self._hist.clear()
        self._gaps.clear()
