"""A streamed reply over time: the wait for the first token, how the tokens piled up, and where it stood still.

Drawn from the stored arrival times (0.1 ms; the first counts from the request, the others from the one before). A stall is a
gap of at least STALL_MS that is STALL_TIMES longer than the median one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llmtap_launcher.datasette.charts import nice
from llmtap_launcher.datasette.formats import duration, number

WIDTH, HEIGHT = 860, 132
STALL_MS, STALL_TIMES = 50.0, 4.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 12, 16, 22
_MAX_POINTS = 600
_MAX_STALLS = 20


@dataclass(frozen=True, slots=True)
class Stall:
    """No token between `start_ms` and `end_ms` (from the request)."""

    start_ms: float
    end_ms: float

    @property
    def took_ms(self) -> float:
        """Its length."""
        return self.end_ms - self.start_ms


def arrivals(deltas: Sequence[int]) -> list[float]:
    """When each content event came, in ms from the request."""
    out: list[float] = []
    at = 0.0
    for delta in deltas:
        at += max(delta, 0) / 10
        out.append(at)
    return out


def stalls(deltas: Sequence[int]) -> list[Stall]:
    """The longest stalls, in the order of time."""
    gaps = sorted(deltas[1:])
    if not gaps:
        return []
    least = max(STALL_MS, STALL_TIMES * gaps[len(gaps) // 2] / 10)
    at = arrivals(deltas)
    found = [Stall(a, b) for a, b in itertools.pairwise(at) if b - a >= least]
    longest = sorted(found, key=lambda stall: -stall.took_ms)[:_MAX_STALLS]
    return sorted(longest, key=lambda stall: stall.start_ms)


def svg(deltas: Sequence[int], duration_ms: float | None = None) -> Markup:
    """The drawing. Empty for fewer than two events."""
    if len(deltas) < 2:
        return Markup("")
    at = arrivals(deltas)
    end = max(at[-1], duration_ms or 0, 0.1)
    right = _axis_end(end)

    def x(ms: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * ms / right

    bottom, height = HEIGHT - _BOTTOM, HEIGHT - _BOTTOM - _TOP
    out = [
        Markup('<rect class="wait" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
            x(0), _TOP, x(at[0]) - x(0), height, f"first token after {duration(at[0])}"
        )
    ]
    for stall in stalls(deltas):
        words = f"nothing for {duration(stall.took_ms)}, {duration(stall.start_ms)} after the request"
        width = x(stall.end_ms) - x(stall.start_ms)
        out.append(
            Markup('<rect class="stall" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
                x(stall.start_ms), _TOP, max(width, 1), height, words
            )
        )
        if width > 34:
            out.append(
                Markup('<text class="stall-label" x="{:.1f}" y="{}">{}</text>').format(
                    x(stall.start_ms) + width / 2, _TOP - 4, duration(stall.took_ms)
                )
            )
    out.append(_curve(at, x, bottom, height))
    out.append(_ticks(at, x, bottom))
    out += [
        Markup(
            '<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/><text class="x{}" x="{x:.1f}" y="{}">{}</text>'
        ).format(
            bottom,
            bottom + 4,
            " first" if n == 0 else " last" if n == 4 else "",
            HEIGHT - 6,
            duration(right * n / 4) if n else "0",
            x=x(right * n / 4),
        )
        for n in range(5)
    ]
    told = f"{number(len(at))} events over {duration(at[-1])}, the first after {duration(at[0])}"
    head = Markup('<svg class="timeline" role="img" viewBox="0 0 {} {}"><title>{}</title>{}</svg>')
    return head.format(WIDTH, HEIGHT, told, Markup("").join(out))


def _axis_end(end: float) -> float:
    """A round end of the axis not far beyond the last event."""
    step = nice(end / 4)
    return step * 4 if step * 4 < end * 1.5 else end


def _curve(at: Sequence[float], x: Callable[[float], float], bottom: float, height: float) -> Markup:
    """The tokens so far, from nothing to all, as steps; thinned out where there are more than the picture has room for."""
    every = max(1, len(at) // _MAX_POINTS)
    points = [f"{x(at[0]):.1f},{bottom:.1f}"]
    kept = sorted({*range(0, len(at), every), len(at) - 1})
    for i in kept:
        before, y = bottom - height * i / len(at), bottom - height * (i + 1) / len(at)
        points += [f"{x(at[i]):.1f},{before:.1f}", f"{x(at[i]):.1f},{y:.1f}"]
    return Markup('<polyline class="curve" points="{}"/>').format(" ".join(points))


def _ticks(at: Sequence[float], x: Callable[[float], float], bottom: float) -> Markup:
    """One mark an event at the bottom: where they are dense, tokens came fast."""
    places = sorted({round(x(ms), 1) for ms in at})
    return Markup('<path class="ticks" d="{}"/>').format("".join(f"M{place} {bottom}v-7" for place in places[:2000]))
