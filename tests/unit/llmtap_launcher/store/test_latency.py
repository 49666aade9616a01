"""Buckets: edges, neighbours, and percentiles as close as promised."""

from __future__ import annotations

import random
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.store.latency import bucket, interpolate, percentile, percentiles, upper


@given(st.floats(min_value=0.0101, max_value=1e9))
def test_a_value_is_in_its_bucket(value: float) -> None:
    number = bucket(value)
    assert upper(number - 1) * (1 - 1e-9) <= value <= upper(number) * (1 + 1e-9)


@pytest.mark.parametrize(("value", "number"), [(-1, 0), (0, 0), (0.01, 0), (0.0101, 1), (0.02, 8), (10.24, 80), (10.25, 81)])
def test_edges(value: float, number: int) -> None:
    assert bucket(value) == number


def test_edges_are_in_the_bucket_they_end() -> None:
    assert [bucket(upper(n)) for n in range(400)] == list(range(400))


@pytest.mark.parametrize("p", [1, 25, 50, 90, 95, 99])
def test_percentiles_are_within_five_percent(p: float) -> None:
    dice = random.Random(3)
    values = sorted(dice.lognormvariate(5, 1.2) for _ in range(20_000))
    exact = values[int(len(values) * p / 100)]
    found = percentile(Counter(map(bucket, values)), p)
    assert found is not None
    assert abs(found / exact - 1) < 0.05


def test_histograms_add_up() -> None:
    one, other = Counter({80: 3, 90: 1}), Counter({80: 1, 100: 4})
    assert percentile(one + other, 50) == percentile(Counter({80: 4, 90: 1, 100: 4}), 50)


def test_extremes() -> None:
    assert percentile({}, 50) is None
    assert percentile({5: 0}, 50) is None
    assert percentile({0: 3}, 99) == 0.01
    assert percentile({8: 1}, 50) == pytest.approx(0.02 * 2 ** (-1 / 16)), "alone: the middle of its bucket"
    assert percentile({8: 1000}, 100) == pytest.approx(0.02, rel=0.001)
    assert percentile({8: 1000}, 0) == pytest.approx(upper(7), rel=0.001)


@given(st.dictionaries(st.integers(0, 200), st.integers(0, 30)), st.lists(st.floats(0, 100), max_size=6))
def test_several_at_once_are_each_by_itself(counts: dict[int, int], wanted: list[float]) -> None:
    wanted.sort()
    assert percentiles(counts, wanted) == [percentile(counts, p) for p in wanted]


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=60))
def test_quartiles_are_those_of_the_standard_library(values: list[float]) -> None:
    ordered = sorted(values)
    expected = statistics.quantiles(ordered, n=4, method="inclusive")
    assert [interpolate(ordered, p) for p in (25, 50, 75)] == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(st.lists(st.floats(0.02, 1e6), min_size=1, max_size=60), st.sampled_from((50, 90, 95, 99)))
def test_interpolation_is_that_of_the_standard_library(values: list[float], p: int) -> None:
    ordered = sorted(values)
    if len(values) > 1:
        assert interpolate(ordered, p) == pytest.approx(statistics.quantiles(ordered, n=100, method="inclusive")[p - 1])
    else:
        assert interpolate(ordered, p) == values[0]
