"""Gateway metrics: names, labels, and what is counted when."""

from __future__ import annotations

import pytest
from mitmproxy.test import tflow
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.errors import NotFound
from llmtap.core.plan import Plan
from llmtap.core.record import Outcome, Summary, Usage
from llmtap.exchange import Exchange
from llmtap.metrics import GatewayMetrics
from llmtap.metrics.families import Counter, Histogram
from llmtap.wire.request import parse

WHERE = {"endpoint": "chat", "model": "m", "backend": "a", "key": "anonymous"}


@pytest.fixture
def metrics() -> GatewayMetrics:
    return GatewayMetrics(CollectorRegistry(), 2048, lambda model: model == "m")


def exchange(model: str = "m", outcome: Outcome = "ok", stream: bool = True) -> Exchange:
    ex = Exchange("POST", "/v1/chat/completions", ENDPOINTS["/v1/chat/completions"], "openai", "127.0.0.1")
    ex.parsed = parse("chat", f'{{"model":"{model}","messages":[],"stream":{str(stream).lower()}}}'.encode())
    ex.started, ex.received, ex.forwarded, ex.status, ex.backend, ex.plan = 10.0, 10.0, 10.001, 200, "a", Plan([])
    ex.first_content, ex.last_chunk, ex.deltas = 10.2, 10.6, [2000, 2000, 2000]
    ex.summary = Summary(usage=Usage(5, 3, 2, source="upstream"))
    ex.finalise(outcome, 10.7)
    return ex


def value(metrics: GatewayMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"llmtap_{name}", labels)


def test_a_finished_stream(metrics: GatewayMetrics) -> None:
    metrics.on_finish(tflow.tflow(), exchange())
    assert value(metrics, "requests_total", **WHERE, outcome="ok", status="200") == 1
    assert value(metrics, "prompt_tokens_total", **WHERE) == 5
    assert value(metrics, "generation_tokens_total", **WHERE) == 3
    assert value(metrics, "cached_prompt_tokens_total", **WHERE) == 2
    assert value(metrics, "time_to_first_token_seconds_sum", **WHERE) == pytest.approx(0.2)
    assert value(metrics, "inter_token_latency_seconds_count", **WHERE) == 2
    assert value(metrics, "time_per_output_token_seconds_sum", **WHERE) == pytest.approx(0.2)
    assert value(metrics, "e2e_request_latency_seconds_sum", **WHERE) == pytest.approx(0.7)


def test_time_to_first_token_is_of_successful_streams_only(metrics: GatewayMetrics) -> None:
    failed = exchange()
    failed.status = 500
    for ex in (exchange(stream=False), failed):
        metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "time_to_first_token_seconds_count", **WHERE) is None


def test_names_of_clients_do_not_become_labels(metrics: GatewayMetrics) -> None:
    metrics.on_finish(tflow.tflow(), exchange(model="whatever a client wrote"))
    assert value(metrics, "requests_total", **{**WHERE, "model": "other"}, outcome="ok", status="200") == 1


def test_a_refusal_is_counted_by_code_and_takes_no_latency(metrics: GatewayMetrics) -> None:
    ex = Exchange("POST", "/sleep", ENDPOINTS["/v1/chat/completions"], "openai", "127.0.0.1")
    ex.refuse(NotFound("no"))
    ex.finalise("rejected", ex.started)
    metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "refusals_total", code="path_not_allowed") == 1
    assert b"llmtap_e2e_request_latency_seconds_count{" not in generate_latest(metrics.registry)


def test_running_goes_up_and_down_once(metrics: GatewayMetrics) -> None:
    ex = exchange()
    metrics.on_request(tflow.tflow(), ex)
    assert value(metrics, "requests_running") == 1
    metrics.on_finish(tflow.tflow(), ex)
    metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "requests_running") == 0


def test_what_clients_write_does_not_fill_the_memory(metrics: GatewayMetrics) -> None:
    for n in range(50):
        metrics.on_finish(tflow.tflow(), exchange(model=f"made up {n}"))
    assert value(metrics, "requests_total", **{**WHERE, "model": "other"}, outcome="ok", status="200") == 50
    assert len(metrics._cells) == 1


def test_a_request_costs_no_label_lookups(metrics: GatewayMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request of a kind finds everything with the first one's lookup (a clock would be the wrong judge here)."""
    metrics.on_finish(tflow.tflow(), exchange())
    for name in ("at", "labels"):
        monkeypatch.setattr(Counter, name, None)
    monkeypatch.setattr(Histogram, "at", None)
    metrics.on_request(tflow.tflow(), exchange())
    metrics.on_finish(tflow.tflow(), exchange())
    assert value(metrics, "requests_total", **WHERE, outcome="ok", status="200") == 2


def test_the_exposition_parses(metrics: GatewayMetrics) -> None:
    metrics.on_finish(tflow.tflow(), exchange())
    families = {f.name for f in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    assert {"llmtap_requests", "llmtap_build_info", "llmtap_time_to_first_token_seconds", "llmtap_hook_errors"} <= families
