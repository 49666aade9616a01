"""Small charts as inline SVG: stacked bars and lines over time. Classes and attributes only, no style and no script.

Every value is in the drawing as a `<title>`, so a pointer (or a screen reader) tells it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 560, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 22
_GRID = 4

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of a chart: `kind` is its CSS class (s1 … s4, bad). `values`: one a time, None where there is none."""

    label: str
    values: Sequence[float | None]
    kind: str


def bars(series: Sequence[Series], times: Sequence[str], show: Format) -> Markup:
    """Stacked bars, the first series at the bottom."""
    sums = [sum(s.values[i] or 0 for s in series) for i in range(len(times))]
    top = nice(max(sums, default=0))
    step = (WIDTH - _LEFT - _RIGHT) / max(len(times), 1)
    out: list[Markup] = []
    for i, when in enumerate(times):
        base = 0.0
        for s in series:
            value = s.values[i] or 0
            if value <= 0:
                continue
            y0, y1 = _y(base, top), _y(base + value, top)
            out.append(
                Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>').format(
                    s.kind, _LEFT + i * step, y1, max(step * 0.86, 0.6), max(y0 - y1, 0.6), f"{when}: {show(value)} {s.label}"
                )
            )
            base += value
    return _frame(Markup("").join(out), times, top, show, series)


def lines(series: Sequence[Series], times: Sequence[str], show: Format) -> Markup:
    """Lines; a gap where a value is missing, a dot for a value that stands alone."""
    top = nice(max((v for s in series for v in s.values if v is not None), default=0))
    step = (WIDTH - _LEFT - _RIGHT) / max(len(times), 1)
    out: list[Markup] = []
    for s in series:
        run: list[tuple[float, float]] = []
        for i in range(len(times) + 1):
            value = s.values[i] if i < len(times) else None
            if value is not None:
                x, y = _LEFT + (i + 0.5) * step, _y(value, top)
                run.append((x, y))
                title = f"{times[i]}: {show(value)} {s.label}"
                # a wide invisible dot catches the pointer
                out.append(
                    Markup('<circle class="{} point" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
                        s.kind, x, y, title
                    )
                )
            elif run:
                out.append(_run(run, s.kind))
                run = []
    return _frame(Markup("").join(out), times, top, show, series)


def nice(value: float) -> float:
    """The end of an axis: the next of 1, 2, 2.5, 5 times a power of ten."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= value * 0.9999))


def _y(value: float, top: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(max(value / top, 0), 1))


def _run(run: Sequence[tuple[float, float]], kind: str) -> Markup:
    if len(run) == 1:
        return Markup('<circle class="{} lone" cx="{:.1f}" cy="{:.1f}" r="2.2"/>').format(kind, *run[0])
    return Markup('<polyline class="{}" points="{}"/>').format(kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in run))


def _frame(drawn: Markup, times: Sequence[str], top: float, show: Format, series: Sequence[Series]) -> Markup:
    grid = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/><text class="y" x="{}" y="{:.1f}">{}</text>'
        ).format(_LEFT, WIDTH - _RIGHT, _LEFT - 6, y + 3.5, show(top * n / _GRID) if n else "0", y=y)
        for n in range(_GRID + 1)
        for y in [_y(top * n / _GRID, top)]
    ]
    shown = range(0, len(times), max(1, math.ceil(len(times) / 6)))
    step = (WIDTH - _LEFT - _RIGHT) / max(len(times), 1)
    axis = [
        Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(
            _LEFT + (i + 0.5) * step, HEIGHT - 6, _short(times[i], times)
        )
        for i in shown
    ]
    names = ", ".join(s.label for s in series)
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}{}{}</svg>').format(
        names, WIDTH, HEIGHT, Markup("").join(grid), drawn, Markup("").join(axis)
    )


def _short(when: str, times: Sequence[str]) -> str:
    """`11-21 09:00` of an hour, only the hour within one or two days; `11-21` of a day."""
    day, _, hour = when.partition(" ")
    if not hour:
        return day[5:]
    return hour if len(times) <= 48 else day[5:]
