"""Bucket bounds of histograms: vLLM's own (0.33, vllm/v1/metrics/loggers.py), so that a panel drawn for vLLM reads ours."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache

Bounds = tuple[float, ...]


def _bounds(text: str) -> Bounds:
    return tuple(map(float, text.split()))


TTFT = _bounds(".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160 640 2560")
ITL = _bounds(".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5 10 20 40 80")
LATENCY = _bounds(".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680")
N = _bounds("1 2 5 10 20")
# ours: the gateway's share is far below any engine's time
OVERHEAD = _bounds(".0001 .00025 .0005 .001 .0025 .005 .01 .025 .05 .1 .25 1")
BATCH_WAIT = _bounds(".001 .0025 .005 .01 .025 .05 .1 .25 .5 1 2.5")
BATCH_SIZE = _bounds("1 2 4 8 16 32 64 128 256")


def token_buckets(max_model_len: int) -> Bounds:
    """1-2-5 series up to `max_model_len`, as vLLM's `build_1_2_5_buckets` (2048 gives 1, 2, 5, ... 1000, 2000)."""
    out: list[float] = []
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale > max_model_len:
                return tuple(out)
            out.append(float(step * scale))
        scale *= 10


@lru_cache(maxsize=64)
def edges(bounds: Bounds) -> tuple[str, ...]:
    """What the label `le` says of each bucket, the last one's included ("1.0", "+Inf"), as prometheus_client writes them."""
    return (*(repr(bound) for bound in bounds), "+Inf")


class Histo:
    """Counts of one histogram under one set of labels. `observe` is a bisection and two additions; not locked."""

    __slots__ = ("born", "bounds", "counts", "total")

    def __init__(self, bounds: Bounds) -> None:
        self.born = time.time()
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # not cumulative; the last has no bound
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, as often as `times` says."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def observe_sorted(self, values: Sequence[float], scale: float = 1.0, copies: float = 1.0) -> None:
        """Count many values at once, given in ascending order: each one times `scale`, and counted `copies` times on
        average (rounded so that the count in all is right)."""
        counts, n, seen, told = self.counts, len(values), 0, 0
        for index, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound / scale, seen)
            if upto != seen:
                cumulative = round(upto * copies)
                counts[index] += cumulative - told
                seen, told = upto, cumulative
                if seen == n:
                    break
        else:
            counts[-1] += round(n * copies) - told
        self.total += sum(values) * scale * copies

    @property
    def count(self) -> int:
        return sum(self.counts)
