"""A metrics snapshot in a few rows: what is going on by model and backend. For `/stats`, `llmtap metrics` and `llmtap top`.

Works on `core.snapshot`'s plain data, so it does not matter whether the metrics are in this process or came by HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Snapshot = Mapping[str, Any]
#: outcomes that are nobody's failure
_FINE = frozenset({"ok", "cached", "client_abort"})


@dataclass(slots=True)
class Row:
    """One model at one backend. Times in seconds, None where nothing was measured; rates per second, None without a span."""

    model: str
    backend: str
    running: int = 0
    waiting: int = 0
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    requests_per_s: float | None = None
    tokens_per_s: float | None = None


def rows(now: Snapshot, before: Snapshot | None = None, span_s: float | None = None) -> list[Row]:
    """A row for every model and backend with anything to tell, sorted.

    With `before`, counts and percentiles are of the time since then; a counter that went down (the gateway was restarted) counts
    from zero. `span_s`: how long that was, for the rates.
    """
    found: dict[tuple[str, str], Row] = {}

    def row(labels: Mapping[str, str]) -> Row:
        at = (labels.get("model", ""), labels.get("backend", ""))
        return found.setdefault(at, Row(*at))

    for labels, value in since(now, before, "llmtap_requests_total"):
        if value:
            one = row(labels)
            one.requests += int(value)
            one.errors += 0 if labels.get("outcome") in _FINE else int(value)
    for labels, value in since(now, before, "llmtap_prompt_tokens_total"):
        if value:
            row(labels).prompt_tokens += int(value)
    for labels, value in since(now, before, "llmtap_generation_tokens_total"):
        if value:
            row(labels).generation_tokens += int(value)
    for labels, value in samples(now, "llmtap_backend_requests_running"):
        row(labels).running += int(value)
    for labels, value in samples(now, "llmtap_model_requests_waiting"):
        row({**labels, "backend": "-"}).waiting += int(value)
    buckets: dict[tuple[str, str], dict[str, float]] = {}
    for labels, value in since(now, before, "llmtap_time_to_first_token_seconds_bucket"):
        of = buckets.setdefault((labels.get("model", ""), labels.get("backend", "")), {})
        of[labels["le"]] = of.get(labels["le"], 0) + value
    for at, counts in buckets.items():
        if at in found:
            found[at].ttft_p50_s, found[at].ttft_p95_s = quantile(counts, 0.5), quantile(counts, 0.95)
    if span_s:
        for one in found.values():
            one.requests_per_s, one.tokens_per_s = one.requests / span_s, one.generation_tokens / span_s
    return [found[at] for at in sorted(found)]


def total(snapshot: Snapshot, name: str) -> float | None:
    """The sum of a metric's samples, None when it has none."""
    values = [value for _, value in samples(snapshot, name)]
    return sum(values) if values else None


def samples(snapshot: Snapshot, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
    """Labels and value of each sample of that name."""
    family = snapshot.get(name) or snapshot.get(name.removesuffix("_total")) or snapshot.get(name.removesuffix("_bucket")) or {}
    for sample in family.get("samples", ()):
        if sample["name"] == name:
            yield sample["labels"], sample["value"]


def since(now: Snapshot, before: Snapshot | None, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
    """The same, less what there was before."""
    old = {tuple(sorted(labels.items())): value for labels, value in samples(before or {}, name)}
    for labels, value in samples(now, name):
        was = old.get(tuple(sorted(labels.items())), 0.0)
        yield labels, value - was if value >= was else value


def quantile(buckets: Mapping[str, float], q: float) -> float | None:
    """The `q` quantile of cumulative counts by `le`, interpolated within its bucket as PromQL's `histogram_quantile` does;
    beyond the last bound that bound. None without observations."""
    bounds = sorted((float(le), count) for le, count in buckets.items())
    if not bounds or bounds[-1][1] <= 0:
        return None
    rank = q * bounds[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in bounds:
        if count >= rank and count > below:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


def plain(found: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows for JSON."""
    return [{name: getattr(row, name) for name in Row.__slots__} for row in found]
