from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.datasette import sparkline


def test_the_first_delta_is_the_time_to_the_first_token_not_a_gap() -> None:
    found = sparkline.pace([5000, 100, 200, 300])
    assert found == sparkline.Pace((10.0, 20.0, 30.0), 20.0, 29.0, 30.0)


def test_one_event_has_no_pace() -> None:
    assert sparkline.pace([]) is None
    assert sparkline.pace([1842]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=2000), st.integers(1, 200))
def test_shrinking_keeps_every_stall(gaps: list[float], bars: int) -> None:
    shown = sparkline.shrink(gaps, bars)
    assert len(shown) == min(len(gaps), bars)
    assert max(shown) == max(gaps)


@given(st.lists(st.integers(0, 10_000_000), min_size=2, max_size=500))
def test_every_bar_stays_inside_the_drawing(deltas: list[int]) -> None:
    found = sparkline.pace(deltas)
    assert found is not None
    root = ET.fromstring(str(sparkline.svg(found)))
    bars = root.findall("rect")
    assert len(bars) == min(len(deltas) - 1, sparkline.MAX_BARS)
    for bar in bars:
        x, y, width, height = (float(bar.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= sparkline.WIDTH and y >= 0 and width > 0 and y + height <= sparkline.HEIGHT + 0.1


def test_a_stall_is_cut_and_marked() -> None:
    found = sparkline.pace([0, *[200] * 99, 90_000])
    assert found is not None
    drawn = str(sparkline.svg(found))
    assert len(re.findall('class="stall"', drawn)) == 1
    assert len(re.findall('class="gap"', drawn)) == 99


def test_the_drawing_needs_no_style_or_script_of_its_own() -> None:
    found = sparkline.pace([1, 2, 3])
    assert found is not None
    assert not re.search(r"style|script|on\w+=", str(sparkline.svg(found)))
