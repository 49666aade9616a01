"""Metrics in a few rows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.rollup import plain, quantile, rows, total


def snapshot(requests: int, errors: int, tokens: int, fast: int, slow: int) -> dict[str, Any]:
    where = {"model": "m", "backend": "a", "endpoint": "chat", "key": "anonymous"}

    def family(*samples: tuple[str, dict[str, str], float]) -> dict[str, Any]:
        return {"samples": [{"name": name, "labels": labels, "value": value} for name, labels, value in samples]}

    ttft = "llmtap_time_to_first_token_seconds"
    return {
        "llmtap_requests": family(
            ("llmtap_requests_total", {**where, "outcome": "ok"}, requests),
            ("llmtap_requests_total", {**where, "outcome": "client_abort"}, 1),
            ("llmtap_requests_total", {**where, "outcome": "timeout"}, errors),
        ),
        "llmtap_generation_tokens": family(
            ("llmtap_generation_tokens_total", where, tokens), ("llmtap_generation_tokens_created", where, 1e9)
        ),
        "llmtap_backend_requests_running": family(("llmtap_backend_requests_running", {"model": "m", "backend": "a"}, 2)),
        "llmtap_model_requests_waiting": family(("llmtap_model_requests_waiting", {"model": "m"}, 5)),
        ttft: family(
            (f"{ttft}_bucket", {**where, "le": "0.1"}, fast),
            (f"{ttft}_bucket", {**where, "le": "1.0"}, fast + slow),
            (f"{ttft}_bucket", {**where, "le": "+Inf"}, fast + slow),
        ),
    }


def test_since_the_start() -> None:
    served, waiting = rows(snapshot(10, 2, 300, 10, 10))[::-1]
    assert (served.model, served.backend, served.requests, served.errors) == ("m", "a", 13, 2)
    assert (served.generation_tokens, served.running, served.ttft_p50_s) == (300, 2, 0.1)
    assert served.ttft_p95_s == pytest.approx(0.91) and served.tokens_per_s is None
    assert (waiting.backend, waiting.waiting) == ("-", 5)


def test_between_two_looks() -> None:
    one = rows(snapshot(30, 2, 700, 20, 10), snapshot(10, 2, 300, 10, 10), 2.0)[1]
    assert (one.requests, one.errors, one.tokens_per_s, one.requests_per_s) == (20, 0, 200.0, 10.0)
    assert one.ttft_p95_s == pytest.approx(0.095)


def test_a_restart_in_between_counts_from_zero() -> None:
    one = rows(snapshot(3, 0, 30, 1, 0), snapshot(10, 2, 300, 10, 10), 1.0)[1]
    assert one.generation_tokens == 30


def test_nothing_to_tell() -> None:
    assert rows({}) == [] and total({}, "x") is None
    assert plain(rows(snapshot(1, 0, 0, 0, 0)))[1]["ttft_p50_s"] is None
    assert total(snapshot(3, 1, 0, 0, 0), "llmtap_requests_total") == 5


def test_quantiles() -> None:
    assert quantile({}, 0.5) is None and quantile({"1.0": 0, "+Inf": 0}, 0.5) is None
    assert quantile({"1.0": 0, "2.0": 10, "+Inf": 10}, 0.5) == 1.5
    assert quantile({"1.0": 0, "+Inf": 10}, 0.5) == 1.0


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.floats(0, 1))
def test_a_quantile_is_within_the_bounds(counts: list[int], q: float) -> None:
    cumulative = [sum(counts[: n + 1]) for n in range(len(counts))]
    found = quantile({**{str(float(n + 1)): c for n, c in enumerate(cumulative)}, "+Inf": cumulative[-1]}, q)
    assert (found is None) == (cumulative[-1] == 0)
    assert found is None or 0 <= found <= len(counts)
