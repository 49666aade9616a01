"""Confidence intervals of differences by the bootstrap, without drawing whole samples.

A quantile of a resample is an order statistic, and of n uniform draws the k-th has the distribution Beta(k, n - k + 1): one draw
from it says which of the sorted values the resample's quantile is. A rate resamples to a binomial number. For means, resamples
of at most 1,000 values are drawn and their deviations scaled down to the sample's size (m out of n). The generator is seeded by
the caller: the same data give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from llmtap_launcher.store.latency import interpolate

DRAWS = 2000
_MEAN_DRAWS, _MEAN_SIZE = 400, 1000
_LEVEL = 95

#: one draw of a statistic of a resample
Draw = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference B - A and the interval that has it with 95 % confidence."""

    delta: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def quantile(ordered: Sequence[float], p: float, dice: Random) -> Draw:
    """Draws the p-th percentile of resamples of an ascending, non-empty sequence."""
    n = len(ordered)
    k = max(1, math.ceil(n * p / 100))
    return lambda: ordered[min(n - 1, int(dice.betavariate(k, n - k + 1) * n))]


def rate(hits: int, n: int, dice: Random) -> Draw:
    """Draws the share of hits in resamples of n (> 0)."""
    share = hits / n
    return lambda: dice.binomialvariate(n, share) / n


def mean(values: Sequence[float], dice: Random) -> Draw:
    """Draws the mean of resamples of a non-empty sequence."""
    n = len(values)
    size = min(n, _MEAN_SIZE)
    middle, shrink = math.fsum(values) / n, math.sqrt(size / n)
    return lambda: middle + (math.fsum(dice.choices(values, k=size)) / size - middle) * shrink


def difference(delta: float, a: Draw, b: Draw, draws: int = DRAWS) -> Interval:
    """The percentile interval of B - A around the difference that was measured."""
    found = sorted(b() - a() for _ in range(draws))
    low, high = interpolate(found, (100 - _LEVEL) / 2), interpolate(found, (100 + _LEVEL) / 2)
    return Interval(delta, min(low, delta), max(high, delta))


def mean_difference(a: Sequence[float], b: Sequence[float], dice: Random) -> Interval:
    """Of the means of two non-empty sequences."""
    delta = math.fsum(b) / len(b) - math.fsum(a) / len(a)
    return difference(delta, mean(a, dice), mean(b, dice), _MEAN_DRAWS)
