"""The timeline: waits, stalls and tokens where they were."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.datasette.timeline import WIDTH, arrivals, stalls, svg

STREAM = [2000, *([250] * 40), 9000, *([250] * 40), 5000, *([250] * 10)]


def test_arrivals_add_up() -> None:
    assert arrivals([100, 20, -5, 30]) == [10, 12, 12, 15]
    assert arrivals([]) == []


def test_stalls_are_gaps_far_beyond_the_usual() -> None:
    found = stalls(STREAM)
    assert [round(s.took_ms) for s in found] == [900, 500]
    assert round(found[0].start_ms) == 200 + 40 * 25
    assert stalls([100]) == []
    assert stalls([100, *([10] * 50), 60]) == [], "6 ms is no stall, however regular the rest"
    assert len(stalls([0, *([100, 100, 100, 100, 9000] * 100)])) == 20


def test_the_picture() -> None:
    drawn = str(svg(STREAM, 4000.0))
    assert drawn.count('class="stall"') == 2
    assert "nothing for 900 ms, 1.20 s after the request" in drawn
    assert "first token after 200 ms" in drawn
    assert 'class="curve"' in drawn
    assert f"<title>{len(STREAM)} events over" in drawn


def test_without_a_stream_there_is_none() -> None:
    assert svg([]) == svg([100]) == ""


@given(st.lists(st.integers(-100, 10**7), min_size=2, max_size=3000), st.none() | st.floats(0, 1e9))
def test_any_stream_draws_inside_its_frame(deltas: list[int], duration_ms: float | None) -> None:
    drawn = str(svg(deltas, duration_ms))
    root = ElementTree.fromstring(drawn)
    for rect in root.iter("rect"):
        assert 0 <= float(rect.get("x", "-1")) <= WIDTH
        assert float(rect.get("x", "-1")) + float(rect.get("width", "-1")) <= WIDTH + 1
    assert len(drawn) < 120_000
    assert not re.search("nan|inf", drawn)
