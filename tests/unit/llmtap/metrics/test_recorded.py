"""One request, from its arrival to its end."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from llmtap.metrics import MetricsRecorder

WHERE = {"endpoint": "chat", "model": "m", "backend": "gpu0", "key": "anonymous"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(clock: Clock) -> MetricsRecorder:
    return MetricsRecorder(CollectorRegistry(), model="m", backend="gpu0", clock=clock)


def value(recorder: MetricsRecorder, name: str, **labels: str) -> float | None:
    return recorder.registry.get_sample_value(f"llmtap_{name}", labels or WHERE)


def outcome(recorder: MetricsRecorder, name: str, status: str) -> float | None:
    return recorder.registry.get_sample_value("llmtap_requests_total", {**WHERE, "outcome": name, "status": status})


def test_a_stream(recorder: MetricsRecorder, clock: Clock) -> None:
    with recorder.request(stream=True) as request:
        assert recorder.registry.get_sample_value("llmtap_requests_waiting") == 1
        clock.now += 0.5
        request.admitted()
        request.admitted()
        assert recorder.registry.get_sample_value("llmtap_requests_waiting") == 0
        assert recorder.registry.get_sample_value("llmtap_requests_running") == 1
        for _ in range(5):
            clock.now += 0.02
            request.token()
        request.usage(prompt_tokens=4, generation_tokens=5, cached_tokens=1)
        request.finish("length")
    request.close()
    assert recorder.registry.get_sample_value("llmtap_requests_running") == 0
    assert outcome(recorder, "ok", "200") == 1
    assert value(recorder, "queue_time_seconds_sum") == pytest.approx(0.5)
    assert value(recorder, "time_to_first_token_seconds_sum") == pytest.approx(0.52)
    assert value(recorder, "inter_token_latency_seconds_count") == 4
    assert value(recorder, "inter_token_latency_seconds_sum") == pytest.approx(0.08)
    assert value(recorder, "time_per_output_token_seconds_sum") == pytest.approx(0.02)
    assert value(recorder, "e2e_request_latency_seconds_sum") == pytest.approx(0.6)
    assert value(recorder, "prompt_tokens_total") == 4 and value(recorder, "cached_prompt_tokens_total") == 1


def test_without_usage_the_tokens_told_count(recorder: MetricsRecorder, clock: Clock) -> None:
    with recorder.request(stream=True) as request:
        request.admitted()
        request.token(3)
        clock.now += 0.1
        request.token(2)
    assert value(recorder, "generation_tokens_total") == 5
    assert value(recorder, "inter_token_latency_seconds_count") == 4  # a piece of several tokens: shared out


@pytest.mark.parametrize(
    ("error", "name", "status"),
    [
        (TimeoutError(), "timeout", "504"),
        (RuntimeError(), "upstream_error", "502"),
        (asyncio.CancelledError(), "client_abort", "499"),
        (GeneratorExit(), "client_abort", "499"),
    ],
)
def test_how_it_ended(recorder: MetricsRecorder, error: BaseException, name: str, status: str) -> None:
    with pytest.raises(type(error)), recorder.request() as request:
        request.admitted()
        raise error
    assert outcome(recorder, name, status) == 1


def test_one_that_left_the_queue_was_never_at_a_backend(recorder: MetricsRecorder) -> None:
    with recorder.request() as request:
        request.outcome("rejected", 429)
    request.admitted()
    assert outcome(recorder, "rejected", "429") == 1
    assert recorder.registry.get_sample_value("llmtap_requests_waiting") == 0
    assert recorder.registry.get_sample_value("llmtap_requests_running") == 0
    assert value(recorder, "e2e_request_latency_seconds_count") is None


def test_first_tokens_of_failures_are_not_measured(recorder: MetricsRecorder) -> None:
    with recorder.request(stream=True) as request:
        request.admitted()
        request.token()
        request.outcome("upstream_error", 502)
    assert value(recorder, "time_to_first_token_seconds_count") is None
    assert value(recorder, "generation_tokens_total") == 1
