"""Charts: what is in them is in the drawing, to scale, and hostile labels stay text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from llmtap_launcher.datasette.charts import HEIGHT, WIDTH, Series, bars, lines, nice

TIMES = [f"2026-11-21 {hour:02d}:00" for hour in range(24)]


def show(value: float) -> str:
    return f"{value:g} <u>"


def numbers(svg: str, tag: str, attribute: str) -> list[float]:
    return [float(e.get(attribute, "nan")) for e in ElementTree.fromstring(svg).iter(tag)]


def test_bars_are_stacked_to_scale() -> None:
    ok, bad = [0.0] * 24, [0.0] * 24
    ok[3], bad[3], ok[5] = 60, 40, 50
    svg = str(bars([Series("ok", ok, "s1"), Series("failed", bad, "bad")], TIMES, show))
    heights = numbers(svg, "rect", "height")
    assert len(heights) == 3
    assert heights[1] == pytest.approx(heights[0] * 40 / 60, abs=0.2)
    assert heights[2] == pytest.approx(heights[0] * 50 / 60, abs=0.2)
    tops = numbers(svg, "rect", "y")
    assert tops[1] + heights[1] == pytest.approx(tops[0], abs=0.2), "the second stands on the first"
    assert "2026-11-21 03:00: 40 &lt;u&gt; failed" in svg
    assert "<u>" not in svg


def test_lines_have_gaps_and_lone_dots() -> None:
    values: list[float | None] = [None] * 24
    values[1], values[2], values[3], values[9] = 1, 2, 4, 3
    svg = str(lines([Series("p50", values, "s1")], TIMES, show))
    assert len(re.findall("<polyline", svg)) == 1
    assert len(re.findall('class="s1 lone"', svg)) == 1
    assert len(re.findall('class="s1 point"', svg)) == 4
    points = re.search(r'points="([^"]+)"', svg)
    assert points is not None
    ys = [float(pair.split(",")[1]) for pair in points[1].split()]
    assert ys == sorted(ys, reverse=True)
    assert all(0 <= y <= HEIGHT for y in ys)


def test_nothing_and_oddities_draw() -> None:
    for draw in (bars, lines):
        for values in ([], [None] * 24, [0.0] * 24, [float(10**12)] * 24, [-1.0] * 24):
            svg = str(draw([Series('"><script>', values, "s1")], TIMES[: len(values)], show))
            root = ElementTree.fromstring(svg)
            assert root.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
            assert "<script>" not in svg


@pytest.mark.parametrize(
    ("value", "end"), [(0, 1), (-3, 1), (0.9, 1), (1, 1), (1.2, 2), (2.2, 2.5), (31, 50), (0.0007, 0.001), (1e9, 1e9)]
)
def test_axes_end_at_round_numbers(value: float, end: float) -> None:
    assert nice(value) == pytest.approx(end)
    assert nice(float("inf")) == 1


def test_days_are_labelled_without_the_year() -> None:
    svg = str(bars([Series("x", [1.0] * 30, "s1")], [f"2026-11-{d:02d}" for d in range(1, 31)], show))
    assert ">11-01<" in svg
    assert ">2026-11-01<" not in svg
