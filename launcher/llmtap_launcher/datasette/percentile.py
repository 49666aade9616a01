"""`percentile(value, p)` for SQL: what SQLite's own optional extension of that name answers, which few builds carry.

The p-th percentile (0 to 100), interpolated between the two nearest ranks; NULL values do not count; NULL for no rows. Source: https://www.sqlite.org/percentile.html
"""

from __future__ import annotations

import sqlite3
from array import array

import orjson

from llmtap_launcher.store import latency


def _percentage(p: float, function: str, place: str) -> float:
    if not 0 <= float(p) <= 100:
        raise ValueError(f"{function}() wants a {place} argument between 0 and 100")
    return float(p)


class Percentile:
    """The aggregate: one instance a group. A p outside 0 to 100 raises ValueError: an error of the query."""

    def __init__(self) -> None:
        self._values = array("d")  # 8 bytes a row: a million rows are 8 MB
        self._p: float | None = None

    def step(self, value: float | None, p: float) -> None:
        if self._p is None:
            self._p = _percentage(p, "percentile", "second")
        if value is not None:
            self._values.append(float(value))

    def finalize(self) -> float | None:
        if not self._values or self._p is None:
            return None
        return latency.interpolate(sorted(self._values), self._p)


class _OfBuckets:
    """An aggregate that adds buckets up."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._p: float | None = None

    def finalize(self) -> float | None:
        found = latency.percentile(self._counts, self._p) if self._p is not None else None
        return None if found is None else float(f"{found:.4g}")  # it knows no more


class HistPercentile(_OfBuckets):
    """The aggregate `hist_percentile(bucket, n, p)` over rows of `latency_hist`: buckets of any hours, models, keys added up."""

    def step(self, bucket: int | None, n: int | None, p: float) -> None:
        if self._p is None:
            self._p = _percentage(p, "hist_percentile", "third")
        if bucket is not None and n is not None:
            self._counts[bucket] = self._counts.get(bucket, 0) + n


class DigestPercentile(_OfBuckets):
    """The aggregate `digest_percentile(json, metric, p)` over rows of `digests`: a few rows instead of a histogram's many."""

    def step(self, digest: str | None, metric: str, p: float) -> None:
        if self._p is None:
            self._p = _percentage(p, "digest_percentile", "third")
        if digest is not None:
            for bucket, n in orjson.loads(digest).get(metric, {}).items():
                number = int(bucket)
                self._counts[number] = self._counts.get(number, 0) + n


def register(conn: sqlite3.Connection) -> None:
    """Make `percentile`, `hist_percentile` and `digest_percentile` known to a connection."""
    conn.create_aggregate("percentile", 2, Percentile)  # type: ignore[arg-type]  # typeshed wants int arguments
    conn.create_aggregate("hist_percentile", 3, HistPercentile)  # type: ignore[arg-type]
    conn.create_aggregate("digest_percentile", 3, DigestPercentile)  # type: ignore[arg-type]
