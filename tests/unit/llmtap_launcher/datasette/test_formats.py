from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.datasette import formats


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (0, "0.00 ms"),
        (0.4, "0.40 ms"),
        (9.99, "9.99 ms"),
        (9.996, "10 ms"),
        (245.4, "245 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (1531, "1.53 s"),
        (12_345, "12.3 s"),
        (59_940, "59.9 s"),
        (59_960, "1 min 00 s"),
        (125_000, "2 min 05 s"),
        (3_599_600, "1 h 00 min"),
        (3_720_000, "1 h 02 min"),
        (-20, "-20 ms"),
    ],
)
def test_duration(ms: float, shown: str) -> None:
    assert formats.duration(ms) == shown


@given(st.floats(min_value=0, max_value=1e12, allow_nan=False))
def test_a_duration_never_shows_sixty_of_a_unit_or_a_thousand_milliseconds(ms: float) -> None:
    shown = formats.duration(ms)
    assert "60 s" not in shown.split(" min ")[-1:] and not shown.startswith(("1000 ms", "60.0 s", "60 min"))


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (12345, "12,345"), (35.24, "35.2"), (36.0, "36"), (1234.5, "1,234"), (1235.6, "1,236")]
)
def test_number(value: float, shown: str) -> None:
    assert formats.number(value) == shown


@pytest.mark.parametrize(
    ("n", "shown"),
    [(0, "0 B"), (999, "999 B"), (10_700, "10.7 kB"), (999_960, "1.0 MB"), (3_200_000, "3.2 MB"), (5e12, "5.0 TB")],
)
def test_size(n: float, shown: str) -> None:
    assert formats.size(n) == shown


@pytest.mark.parametrize(
    ("iso", "shown"),
    [
        ("2025-11-21T01:36:12.123Z", "2025-11-21 01:36:12"),
        ("2025-11-21T03:36:12+02:00", "2025-11-21 01:36:12"),
        ("2025-11-21T01:36:12", "2025-11-21 01:36:12"),
        ("yesterday", "yesterday"),
    ],
)
def test_when(iso: str, shown: str) -> None:
    assert formats.when(iso) == shown
