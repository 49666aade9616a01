"""Counts of the calls of one client, from its start."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from llmtap.core.record import Begin, End

#: percentiles are of the latest so many calls
_KEPT = 10_000


class Statistics:
    """Filled by any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._models: dict[str, Counter[str]] = {}
        self._total_ms = 0.0
        self._latency: deque[float] = deque(maxlen=_KEPT)
        self._ttft: deque[float] = deque(maxlen=_KEPT)

    def add(self, begin: Begin, end: End) -> None:
        """A call that has ended."""
        usage = end.summary.usage if end.summary is not None else None
        model = (end.summary.model if end.summary is not None else None) or begin.model or "other"
        how = {"ok": "successful_requests", "client_abort": "aborted_requests"}.get(end.outcome, "failed_requests")
        with self._guard:
            of = self._models.setdefault(model, Counter())
            for counts in (self._counts, of):
                counts["total_requests"] += 1
                counts[how] += 1
                for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"):
                    counts[name] += (getattr(usage, name) if usage is not None else None) or 0
            self._counts["retries"] += max(0, end.attempts - 1)
            if how == "failed_requests":
                self._errors[end.error_type or end.outcome] += 1
            if end.outcome == "ok":
                self._total_ms += end.duration_ms or 0.0
                self._latency.append(end.duration_ms or 0.0)
                if end.ttft_ms is not None:
                    self._ttft.append(end.ttft_ms)

    def figures(self) -> dict[str, Any]:
        """Plain data. Latencies are of successful calls; percentiles of the latest 10,000."""
        with self._guard:
            counts, ok = self._counts, self._counts["successful_requests"]
            total = counts["total_requests"]
            return {
                "total_requests": total,
                "successful_requests": ok,
                "failed_requests": counts["failed_requests"],
                "aborted_requests": counts["aborted_requests"],
                "success_rate": ok / total if total else None,
                "retries": counts["retries"],
                "prompt_tokens": counts["prompt_tokens"],
                "completion_tokens": counts["completion_tokens"],
                "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"],
                "cached_tokens": counts["cached_tokens"],
                "reasoning_tokens": counts["reasoning_tokens"],
                "average_latency_ms": self._total_ms / ok if ok else None,
                "latency_ms": _percentiles(self._latency),
                "ttft_ms": _percentiles(self._ttft),
                "errors": dict(self._errors.most_common()),
                "models": {name: dict(of) for name, of in sorted(self._models.items())},
            }


def _percentiles(values: Iterable[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {f"p{p}": _at(ordered, p) for p in (50, 90, 95, 99)}


def _at(ordered: list[float], p: int) -> float | None:
    if not ordered:
        return None
    rank = (len(ordered) - 1) * p / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)
