"""Counts of a client."""

from __future__ import annotations

from typing import Any

import pytest

from llmtap.core.record import Begin, End, Summary, Usage
from llmtap.middleware.statistics import Statistics

BEGIN = Begin("u", 1, "w", "POST", "/v1/chat/completions", "chat", model="asked")


def end(outcome: Any = "ok", ms: float = 100.0, **more: Any) -> End:
    return End("u", 2, outcome, attempts=more.pop("attempts", 1), duration_ms=ms, **more)


def test_nothing_yet() -> None:
    found = Statistics().figures()
    assert (found["total_requests"], found["success_rate"], found["average_latency_ms"]) == (0, None, None)
    assert found["latency_ms"] == {"p50": None, "p90": None, "p95": None, "p99": None}


def test_counts() -> None:
    counted = Statistics()
    usage = Usage(10, 5, 4, 1, "upstream")
    for ms in (100.0, 200.0, 300.0):
        counted.add(BEGIN, end(ms=ms, summary=Summary(model="served", usage=usage), ttft_ms=ms / 10, attempts=2))
    counted.add(BEGIN, end("client_abort", summary=Summary(model="served", usage=Usage(None, 2))))
    counted.add(BEGIN, end("timeout", error_type="timeout"))
    counted.add(BEGIN, end("upstream_error"))
    found = counted.figures()
    assert (found["total_requests"], found["successful_requests"], found["aborted_requests"], found["failed_requests"]) == (
        6,
        3,
        1,
        2,
    )
    assert found["success_rate"] == 0.5
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"], found["cached_tokens"]) == (30, 17, 47, 12)
    assert found["retries"] == 3
    assert found["average_latency_ms"] == 200.0
    assert (found["latency_ms"]["p50"], found["latency_ms"]["p90"]) == (200.0, pytest.approx(280.0))
    assert found["ttft_ms"]["p50"] == 20.0
    assert found["errors"] == {"timeout": 1, "upstream_error": 1}
    assert found["models"]["served"]["total_requests"] == 4
    assert found["models"]["asked"]["failed_requests"] == 2
