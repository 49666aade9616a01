"""The buckets of `latency_hist`: logarithmic, eight an octave, so that histograms of any hours add up and a percentile is off
by less than 9 %; and the exact percentiles of values that are at hand.

Bucket b holds values in (0.01 * 2^((b-1)/8), 0.01 * 2^(b/8)]; bucket 0 all up to 0.01. Durations are milliseconds,
`tokens_per_second` is what it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PER_OCTAVE = 8
LEAST = 0.01
METRICS = ("ttft_ms", "itl_ms", "duration_ms", "queue_ms", "overhead_ms", "tokens_per_second")


def bucket(value: float) -> int:
    """The bucket of a value (of any sign: what is not positive is in bucket 0)."""
    if value <= LEAST:
        return 0
    # what a float makes of an upper edge may lie a hair above it
    return math.ceil(PER_OCTAVE * math.log2(value / LEAST) - 1e-9)


def upper(number: int) -> float:
    """The upper edge of a bucket."""
    return float(LEAST * 2 ** (number / PER_OCTAVE))


def interpolate(ordered: Sequence[float], p: float) -> float:
    """The p-th percentile (0 to 100) of an ascending, non-empty sequence of values, between the two nearest ranks."""
    rank = (len(ordered) - 1) * p / 100
    low = int(rank)
    if low + 1 >= len(ordered):
        return ordered[low]
    return ordered[low] + (ordered[low + 1] - ordered[low]) * (rank - low)


def percentile(counts: Mapping[int, int], p: float) -> float | None:
    """The p-th percentile (0 to 100) of a histogram {bucket: n}, interpolated inside its bucket; None when it is empty."""
    return percentiles(counts, (p,))[0]


def percentiles(counts: Mapping[int, int], wanted: Sequence[float]) -> list[float | None]:
    """Several percentiles, in ascending order, in one walk."""
    total = sum(counts.values())
    if total <= 0 or not wanted:
        return [None] * len(wanted)
    ranks = [max(1, math.ceil(total * p / 100)) for p in wanted]  # nearest rank
    found: list[float | None] = []
    rank, seen = ranks[0], 0
    for number in sorted(counts):
        n = counts[number]
        if n <= 0 or seen + n < rank:
            seen += n
            continue
        while seen + n >= rank:
            share = max(0.0, min(1.0, (rank - seen - 0.5) / n))  # a value alone counts as the middle
            found.append(float(LEAST * 2 ** ((number - 1 + share) / PER_OCTAVE)) if number else LEAST)
            if len(found) == len(ranks):
                return found
            rank = ranks[len(found)]
        seen += n
    return found + [upper(max(counts))] * (len(ranks) - len(found))
