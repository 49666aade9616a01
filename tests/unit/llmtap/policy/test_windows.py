"""Sliding windows: never more than the limit in any window, whatever the clock does; corrections; what is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.policy.windows import Window, Windows, duration, estimate_tokens

#: gaps between requests, the boundaries of the window among them
GAPS = st.sampled_from([0.0, 0.0, 1e-9, 0.1, 0.5, 0.999999, 1.0, 1.000001, 2.0])


@given(gaps=st.lists(GAPS, max_size=80), limit=st.integers(1, 5))
def test_no_window_ever_holds_more_than_the_limit(gaps: list[float], limit: int) -> None:
    window, now, let_in = Window(), 0.0, []
    for gap in gaps:
        now += gap
        verdict, _ = window.take(now, 1.0, limit)
        if verdict.allowed:
            let_in.append(now)
        else:
            assert sum(1 for at in let_in if at > now - 1.0) == limit, "refused though there was room"
    for start in let_in:
        assert sum(1 for at in let_in if start <= at < start + 1.0) <= limit
    for end in let_in:
        assert sum(1 for at in let_in if end - 1.0 < at <= end) <= limit


@given(takes=st.lists(st.tuples(GAPS, st.integers(0, 12), st.integers(0, 12)), max_size=60))
def test_reserved_tokens_never_exceed_the_limit(takes: list[tuple[float, int, int]]) -> None:
    """Reserved, then settled to no more than was reserved: no window holds more."""
    window, now, limit = Window(), 0.0, 10
    used: list[tuple[float, int]] = []
    for gap, amount, actual in takes:
        now += gap
        verdict, taking = window.take(now, 1.0, limit, amount)
        if taking is not None:
            cost = min(actual, taking.amount)
            window.settle(taking, cost)
            used.append((now, cost))
        assert verdict.allowed == (taking is not None)
    for end, _ in used:
        assert sum(cost for at, cost in used if end - 1.0 < at <= end) <= limit


def test_what_is_told() -> None:
    window = Window()
    assert [window.take(at, 60, 2)[0].remaining for at in (0, 10)] == [1, 0]
    verdict, taking = window.take(20, 60, 2)
    assert taking is None and (verdict.allowed, verdict.limit, verdict.remaining) == (False, 2, 0)
    assert (verdict.retry_s, verdict.reset_s) == (40, 50)
    assert window.take(60, 60, 2)[0].allowed
    refused, _ = window.take(60, 60, 2)
    assert refused.retry_s == 10


def test_waiting_as_long_as_told_is_enough() -> None:
    window = Window()
    for at, amount in ((0, 3), (5, 4), (9, 3)):
        assert window.take(at, 60, 10, amount)[0].allowed
    verdict, _ = window.take(10, 60, 10, 6)
    assert verdict.retry_s == 55  # the first two have to go
    assert not window.take(10 + 54.9, 60, 10, 6)[0].allowed
    assert window.take(10 + 55, 60, 10, 6)[0].allowed


def test_corrections() -> None:
    window = Window()
    _, taking = window.take(0, 60, 100, 80)
    assert taking is not None and not window.take(1, 60, 100, 30)[0].allowed
    window.settle(taking, 10)
    assert window.take(1, 60, 100, 30)[0].remaining == 60
    window.settle(taking, 170)  # a debt
    refused, _ = window.take(2, 60, 100, 1)
    assert not refused.allowed and refused.remaining == 0
    assert window.take(60, 60, 100, 1)[0].allowed
    window.settle(taking, 1_000_000)  # long forgotten
    assert window.take(61, 60, 100, 1)[0].allowed


def test_more_than_the_limit_at_once_waits_for_an_empty_window() -> None:
    window = Window()
    assert window.take(0, 60, 10, 50)[0].remaining == 0
    assert not window.take(59, 60, 10, 1)[0].allowed
    assert window.take(60, 60, 10, 1)[0].allowed
    assert not window.take(61, 60, 10, 50)[0].allowed


def test_names_are_apart_and_quiet_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap.policy.windows._SWEEP_AT", 10)
    windows = Windows()
    for n in range(100):
        assert windows.take(f"ip:{n}", float(n), 5.0, 1)[0].allowed
        assert not windows.take(f"ip:{n}", float(n), 5.0, 1)[0].allowed
    assert len(windows) < 30
    _, taking = windows.take("t", 100.0, 5.0, 10, 10)
    assert taking is not None
    windows.settle("t", taking, 0)
    windows.settle("gone", taking, 0)
    assert windows.take("t", 100.0, 5.0, 10, 10)[0].allowed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (1.5, "1.5s"), (59.9996, "1m0s"), (360, "6m0s"), (3723.25, "1h2m3.25s"), (-1, "0ms")],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_estimates() -> None:
    assert estimate_tokens(400, 50, None, 256) == 150
    assert estimate_tokens(400, None, 3, 256) == 100 + 768
    assert estimate_tokens(400, None, None, 0) == 100
