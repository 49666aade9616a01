"""The pace of a streamed reply as a small inline SVG: one bar a gap between two content events, left to right.

Only presentation attributes, no style and no script, so that the page's Content-Security-Policy needs no exception for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from llmtap_launcher.datasette.formats import duration
from llmtap_launcher.store.latency import interpolate

WIDTH, HEIGHT = 320, 56
MAX_BARS = 160


@dataclass(frozen=True, slots=True)
class Pace:
    """Gaps between content events, in ms."""

    gaps: tuple[float, ...]
    p50: float
    p95: float
    longest: float


def pace(deltas: Sequence[int]) -> Pace | None:
    """The gaps of stored deltas (0.1 ms; the first counts from the request, so it is no gap). None with fewer than two events."""
    gaps = tuple(d / 10 for d in deltas[1:])
    if not gaps:
        return None
    ordered = sorted(gaps)
    return Pace(gaps, interpolate(ordered, 50), interpolate(ordered, 95), ordered[-1])


def shrink(gaps: Sequence[float], bars: int) -> list[float]:
    """At most `bars` values, each the largest of its stretch: a stall stays visible however long the reply."""
    if len(gaps) <= bars:
        return list(gaps)
    edges = [len(gaps) * i // bars for i in range(bars + 1)]
    return [max(gaps[a:b]) for a, b in pairwise(edges)]


def svg(what: Pace) -> Markup:
    """The drawing. Bars are linear up to three times the 95th percentile; taller ones are cut there, in the class `stall`."""
    values = shrink(what.gaps, MAX_BARS)
    top = max(min(what.p95 * 3, what.longest), 0.1)
    step = WIDTH / len(values)
    width = max(min(step * 0.8, 12), 0.8)
    bars = []
    for i, value in enumerate(values):
        height = max(min(value / top, 1) * HEIGHT, 1)
        bars.append(
            Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                "stall" if value > top else "gap", i * step, HEIGHT - height, width, height
            )
        )
    title = f"Gaps between tokens: median {duration(what.p50)}, p95 {duration(what.p95)}, longest {duration(what.longest)}"
    head = Markup('<svg class="pace" role="img" viewBox="0 0 {w} {h}" width="{w}" height="{h}" preserveAspectRatio="none">')
    return head.format(w=WIDTH, h=HEIGHT) + Markup("<title>{}</title>{}</svg>").format(title, Markup("").join(bars))
