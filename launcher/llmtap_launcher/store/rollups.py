"""`usage_daily`, `usage_hourly`, `latency_hist`, `digests`: what an exchange adds, gathered for a batch and written once.

Percentiles over a million rows take seconds in SQL, and the rows go when they are old: these stay. What an exchange adds
is a plain function of its row, so a row that changes (a reply after all to what was lost) is taken out as it was and put in as
it is.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llmtap_launcher.store import digests
from llmtap_launcher.store.digests import Digest, Place
from llmtap_launcher.store.latency import METRICS, bucket

#: columns of `exchanges` that a contribution is made of
COLUMNS = (
    "started_at key_name model_requested model_response backend cache status outcome error_type finish_reason "
    "prompt_tokens completion_tokens cached_tokens reasoning_tokens cost_nanousd price_id "
    "ttft_ms duration_ms queue_ms overhead_ms tokens_per_second"
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


def model_of(row: Mapping[str, Any]) -> str:
    """The name counted under: the served model. What no backend took is `other`: clients may name anything."""
    name = row["model_response"] or (row["model_requested"] if row["backend"] else None)
    return str(name or "other")


class Rollups:
    """Sums of the current batch. Not in the database before `flush`. `with_digests`: whether there is a table for them."""

    def __init__(self, with_digests: bool = True) -> None:
        self._with_digests = with_digests
        self._usage: dict[Place, list[int]] = {}
        self._digests: dict[Place, Digest] = {}
        self._gaps: dict[Place, Counter[int]] = {}

    def add(self, row: Mapping[str, Any], gaps: Sequence[int] = (), sign: int = 1) -> None:
        """Puts an exchange in, or takes it out (`sign` -1). `gaps`: between content events, 0.1 ms. Open ones count nothing."""
        outcome, at = row["outcome"], row["started_at"]
        if outcome == "open" or at is None:
            return
        place = at[:13], row["key_name"] or "", model_of(row), row["backend"] or ""
        status = row["status"]
        failed = outcome not in _GOOD or (status is not None and status >= 400)
        sums = self._usage.get(place)
        if sums is None:
            sums = self._usage[place] = [0] * 6
            self._digests[place] = {}
        sums[0] += sign
        sums[1] += sign * failed
        sums[2] += sign * (row["prompt_tokens"] or 0)
        sums[3] += sign * (row["completion_tokens"] or 0)
        sums[4] += sign * (row["cached_tokens"] or 0)
        sums[5] += sign * (row["cost_nanousd"] or 0)
        digest = self._digests[place]
        digests.count(digest, row, sign)
        if outcome != "ok" or failed:
            return
        for metric in _SCALARS:
            value = row[metric]
            if value is not None:
                hist = digest.get(metric)
                if hist is None:
                    hist = digest[metric] = {}
                name = str(bucket(value))
                hist[name] = hist.get(name, 0) + sign
        if gaps:
            counts = self._gaps.setdefault(place, Counter())
            if sign > 0:
                counts.update(gaps)
            else:
                counts.subtract(gaps)

    def cost(self, row: Mapping[str, Any], more: int) -> None:
        """Adds to the cost of an exchange that is in already."""
        self.rebill(row, {**row, "cost_nanousd": (row["cost_nanousd"] or 0) + more})

    def rebill(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """An exchange that is in already gets another cost, or another price."""
        place = old["started_at"][:13], old["key_name"] or "", model_of(old), old["backend"] or ""
        self._usage.setdefault(place, [0] * 6)[5] += (new["cost_nanousd"] or 0) - (old["cost_nanousd"] or 0)
        digest = self._digests.setdefault(place, {})
        digests.bill(digest, old, -1)
        digests.bill(digest, new)

    def flush(self, conn: sqlite3.Connection) -> None:
        """Writes the sums, in the caller's transaction, and begins anew. Rows that came to nothing go."""
        self._sort_gaps()
        hourly = [(*place, *sums) for place, sums in self._usage.items() if any(sums)]
        daily = [(place[0][:10], *place[1:], *sums) for place, sums in self._usage.items() if any(sums)]
        hists = [
            (hour, model, key, metric, int(number), n)
            for (hour, key, model, _), digest in self._digests.items()
            for metric in METRICS
            for number, n in digest.get(metric, {}).items()
            if n
        ]
        fewer_requests = any(sums[0] < 0 for sums in self._usage.values())
        fewer_values = any(row[-1] < 0 for row in hists)
        conn.executemany(_UPSERT_USAGE.format("usage_hourly"), hourly)
        conn.executemany(_UPSERT_USAGE.format("usage_daily"), daily)
        conn.executemany(_UPSERT_HIST, hists)
        if self._with_digests:
            digests.save(conn, self._digests.items())
        if fewer_requests:
            conn.execute("DELETE FROM usage_hourly WHERE requests = 0")
            conn.execute("DELETE FROM usage_daily WHERE requests = 0")
        if fewer_values:
            conn.execute("DELETE FROM latency_hist WHERE n = 0")
        self.clear()

    def flush_digests(self, conn: sqlite3.Connection) -> None:
        """Writes the digests alone and begins anew: of a database whose other sums are made."""
        self._sort_gaps()
        digests.save(conn, self._digests.items())
        self.clear()

    def _sort_gaps(self) -> None:
        for place, counts in self._gaps.items():
            hist = self._digests[place].setdefault("itl_ms", {})
            for gap, n in counts.items():
                name = str(_GAPS[gap] if 0 <= gap < len(_GAPS) else bucket(gap / 10))
                hist[name] = hist.get(name, 0) + n

    def clear(self) -> None:
        """Forgets the batch: it was rolled back."""
        self._usage.clear()
        self._digests.clear()
        self._gaps.clear()
