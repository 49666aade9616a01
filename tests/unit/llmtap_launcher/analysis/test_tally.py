"""Tallies: exact percentiles as NumPy's default has them, histograms near them, sums whichever way they are filled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.analysis.tally import PERCENTILES, Tally
from llmtap_launcher.store.latency import interpolate
from support.rows import row

ROW = row(
    prompt_tokens=10,
    completion_tokens=5,
    cached_tokens=8,
    cost_nanousd=7_000,
    price_id=1,
    queue_ms=None,
    overhead_ms=0.2,
)
VALUES = st.lists(st.floats(0.02, 1e6), min_size=1, max_size=60)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=80))
def test_counted_gaps_have_the_percentiles_of_their_list(gaps: list[int]) -> None:
    tally = Tally(exact=True)
    for start in range(0, len(gaps), 7):
        tally.add(ROW, gaps[start : start + 7])
    found = tally.distribution("itl_ms")
    assert found["n"] == len(gaps)
    ordered = sorted(gap / 10 for gap in gaps)
    assert [found[f"p{p}"] for p in PERCENTILES] == pytest.approx([interpolate(ordered, p) for p in PERCENTILES])


@given(VALUES)
def test_a_histogram_is_off_by_less_than_a_bucket(values: list[float]) -> None:
    exact, rough = Tally(exact=True), Tally(exact=False)
    for value in values:
        for tally in (exact, rough):
            tally.add(ROW | {"ttft_ms": value})
    found = rough.distribution("ttft_ms")
    assert found["n"] == len(values)
    ordered = sorted(values)
    for p in PERCENTILES:
        nearest = ordered[max(0, -(-len(values) * p // 100) - 1)]
        assert found[f"p{p}"] == pytest.approx(nearest, rel=0.095)


def test_what_is_counted() -> None:
    tally = Tally(exact=True)
    tally.add(ROW, [20, 30])
    tally.add(ROW | {"outcome": "cached", "cache": "hit", "cost_nanousd": 0})
    tally.add(ROW | {"outcome": "client_abort", "status": None, "finish_reason": None})
    tally.add(ROW | {"outcome": "timeout", "status": 504, "error_type": "timeout_error", "prompt_tokens": None})
    tally.add(ROW | {"outcome": "lost", "status": None, "finish_reason": None})
    tally.add(ROW | {"status": 422, "finish_reason": None}, [99])
    found = tally.figures()
    assert (found["requests"], found["succeeded"], found["failed"], found["aborted"]) == (6, 2, 3, 1)
    assert found["success_rate"] == pytest.approx(1 / 3)
    assert found["errors"] == {"http_422": 1, "lost": 1, "timeout_error": 1}
    assert found["outcomes"] == {"ok": 2, "cached": 1, "client_abort": 1, "lost": 1, "timeout": 1}
    assert found["finish_reasons"] == {"stop": 3}
    assert (found["prompt_tokens"], found["cached_tokens"], found["completion_tokens"]) == (50, 48, 30)
    assert found["cost_usd"] == pytest.approx(35_000 / 1e9)
    assert found["duration_ms"] == {"n": 1, "p50": 900.0, "p90": 900.0, "p95": 900.0, "p99": 900.0}
    assert found["itl_ms"]["n"] == 2
    assert found["queue_ms"] == {"n": 0, "p50": None, "p90": None, "p95": None, "p99": None}


@pytest.mark.parametrize("exact", [True, False])
def test_taking_another_is_adding_its_rows(exact: bool) -> None:
    one, two, both = (Tally(exact) for _ in range(3))
    for n in range(20):
        row, gaps = ROW | {"ttft_ms": 50.0 + n, "finish_reason": "stop" if n % 3 else "length"}, [n, n * 10]
        (one if n % 2 else two).add(row, gaps)
        both.add(row, gaps)
    one.take(two)
    assert one.figures() == both.figures()


def test_nothing_has_no_figures() -> None:
    found = Tally(exact=False).figures()
    assert (found["requests"], found["success_rate"], found["ttft_ms"]["p50"], found["cost_usd"]) == (0, None, None, 0)
