"""Counts of some exchanges, and the figures made of them.

A tally is filled from rows, and then its percentiles are exact (interpolated between the two nearest ranks, as pandas, DuckDB
and NumPy do by default); or from digests, whose histograms have eight buckets an octave: a percentile is off by less than 9 %,
among many values by less than 1. Latencies and speeds are of exchanges that a backend answered well.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llmtap_launcher.store import digests, latency
from llmtap_launcher.store.digests import Digest

METRICS = ("ttft_ms", "itl_ms", "duration_ms", "tokens_per_second", "queue_ms", "overhead_ms")
PERCENTILES = (50, 90, 95, 99)
_SCALARS = tuple(metric for metric in METRICS if metric != "itl_ms")


class Tally:
    """`exact`: values are kept and not only their buckets (8 bytes a value)."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.digest: Digest = {}
        self._values: dict[str, array[float]] = {}
        self._gaps: Counter[int] = Counter()

    def add(self, row: Mapping[str, Any], gaps: Sequence[int] = ()) -> None:
        """A row of `exchanges` that has ended. `gaps`: between content events, 0.1 ms."""
        digests.count(self.digest, row)
        if row["outcome"] != "ok" or (row["status"] or 0) >= 400:
            return
        for metric in _SCALARS:
            value = row[metric]
            if value is not None:
                if self.exact:
                    if (values := self._values.get(metric)) is None:
                        values = self._values[metric] = array("d")
                    values.append(value)
                else:
                    self._bucket(metric, latency.bucket(value), 1)
        if gaps:
            self._gaps.update(gaps)

    def merge(self, digest: Mapping[str, Mapping[str, int]]) -> None:
        """A digest out of the database."""
        digests.merge(self.digest, digest)

    def take(self, other: Tally) -> None:
        """All of another tally."""
        digests.merge(self.digest, other.digest)
        for metric, values in other._values.items():
            self._values.setdefault(metric, array("d")).extend(values)
        self._gaps.update(other._gaps)

    def _bucket(self, metric: str, bucket: int, n: int) -> None:
        counts = self.digest.setdefault(metric, {})
        name = str(bucket)
        counts[name] = counts.get(name, 0) + n

    # figures

    @property
    def requests(self) -> int:
        """Exchanges in it."""
        return sum(self.digest.get("went", {}).values())

    def of(self, kind: str, name: str) -> int:
        """One counter."""
        counts = self.digest.get(kind)
        return counts.get(name, 0) if counts is not None else 0

    def distribution(self, metric: str) -> dict[str, float | int | None]:
        """`n` and percentiles of a metric; None where there are no values."""
        if metric == "itl_ms" and self.exact:
            n, at = sum(self._gaps.values()), _ranked(self._gaps)
            found = [None if not n else at(p) for p in PERCENTILES]
        elif self.exact:
            ordered = sorted(self._values.get(metric, ()))
            n = len(ordered)
            found = [latency.interpolate(ordered, p) if n else None for p in PERCENTILES]
        else:
            counts = self._histogram(metric)
            n = sum(counts.values())
            found = [_rounded(value) for value in latency.percentiles(counts, PERCENTILES)]
        return {"n": n, **{f"p{p}": value for p, value in zip(PERCENTILES, found, strict=True)}}

    def _histogram(self, metric: str) -> dict[int, int]:
        counts = {int(bucket): n for bucket, n in self.digest.get(metric, {}).items()}
        if metric == "itl_ms":  # those of rows are not in the digest yet
            for gap, n in self._gaps.items():
                bucket = latency.bucket(gap / 10)
                counts[bucket] = counts.get(bucket, 0) + n
        return counts

    def figures(self) -> dict[str, Any]:
        """All of it as plain data: counts, tokens, dollars, and for each metric its distribution (ms, tokens a second)."""
        requests = self.requests
        succeeded = self.of("went", "succeeded")
        bills = [*self.digest.get("paid", {}).items(), *self.digest.get("hit", {}).items()]
        return {
            "requests": requests,
            "succeeded": succeeded,
            "failed": self.of("went", "failed"),
            "aborted": self.of("went", "aborted"),
            "success_rate": succeeded / requests if requests else None,
            "errors": _most(self.digest.get("error", {})),
            "outcomes": _most(self.digest.get("outcome", {})),
            "finish_reasons": _most(self.digest.get("finish", {})),
            "prompt_tokens": self.of("tokens", "prompt"),
            "completion_tokens": self.of("tokens", "completion"),
            "cached_tokens": self.of("tokens", "cached"),
            "reasoning_tokens": self.of("tokens", "reasoning"),
            "cost_usd": sum(n for name, n in bills if name.endswith(".cost")) / 1e9,
            **{metric: self.distribution(metric) for metric in METRICS},
        }


def _ranked(gaps: Mapping[int, int]) -> Any:
    """`latency.interpolate` over counted gaps, in ms."""
    ordered = sorted(gaps)
    total = sum(gaps.values())

    def nth(rank: int) -> float:
        seen = 0
        for gap in ordered:
            seen += gaps[gap]
            if seen > rank:
                return gap / 10
        return ordered[-1] / 10

    def at(p: float) -> float:
        rank = (total - 1) * p / 100
        low = int(rank)
        first, second = nth(low), nth(min(low + 1, total - 1))
        return first + (second - first) * (rank - low)

    return at


def _rounded(value: float | None) -> float | None:
    """A histogram's percentile knows no more than three digits."""
    return None if value is None else float(f"{value:.4g}")


def _most(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0])))
