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
from llmtap.core.record import Choice, Outcome, Summary, Usage
from llmtap.exchange import Exchange
from llmtap.metrics import GatewayMetrics
from llmtap.metrics.families import Counter, Histogram
from llmtap.metrics.gateway import MAX_MODELS
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


def test_an_aborted_stream_counts_what_it_produced(metrics: GatewayMetrics) -> None:
    """Its status is 499 by then; the first token came with a 200."""
    ex = exchange(outcome="client_abort")
    ex.status = 499
    ex.summary = Summary(usage=Usage(None, 3, source="estimated"))
    metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "requests_total", **WHERE, outcome="client_abort", status="499") == 1
    assert value(metrics, "generation_tokens_total", **WHERE) == 3
    assert value(metrics, "prompt_tokens_total", **WHERE) is None
    assert value(metrics, "time_to_first_token_seconds_count", **WHERE) == 1


def test_a_prompt_counts_once_for_each_choice_as_in_vllm(metrics: GatewayMetrics) -> None:
    ex = exchange()
    ex.parsed = parse("chat", b'{"model":"m","messages":[],"n":2,"stream":true}')
    ex.summary = Summary(choices=[Choice(0), Choice(1)], usage=Usage(5, 31, source="upstream"))
    metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "prompt_tokens_total", **WHERE) == 10
    assert value(metrics, "request_prompt_tokens_sum", **WHERE) == 5


def test_a_client_that_writes_a_huge_n_counts_the_choices_it_got(metrics: GatewayMetrics) -> None:
    ex = exchange()
    ex.parsed = parse("chat", b'{"model":"m","messages":[],"n":1000000}')
    ex.summary = Summary(choices=[Choice(0)], usage=Usage(5, 3, source="upstream"))
    metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "prompt_tokens_total", **WHERE) == 5


def test_reasoning_that_was_not_shown_is_not_part_of_the_pace(metrics: GatewayMetrics) -> None:
    ex = exchange()
    ex.summary = Summary(choices=[Choice(0, content="x")], usage=Usage(5, 103, reasoning_tokens=100, source="upstream"))
    metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "time_per_output_token_seconds_sum", **WHERE) == pytest.approx(0.2)
    assert value(metrics, "inter_token_latency_seconds_count", **WHERE) == 2


def test_overhead_and_queue_time(metrics: GatewayMetrics) -> None:
    ex = exchange()
    ex.outcome, ex.received, ex.forwarded, ex.queue_s = "open", 10.1, 10.152, 0.05
    assert ex.finalise("ok", 10.7)
    metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "queue_time_seconds_sum", **WHERE) == 0.05
    # 2 ms before it was forwarded, 100 ms from the last byte to the end
    assert value(metrics, "overhead_seconds_sum", **WHERE) == pytest.approx(0.102)


def test_waiting_and_running_by_model_and_backend(metrics: GatewayMetrics) -> None:
    ex = exchange()
    metrics.enqueue(ex)
    assert value(metrics, "requests_waiting") == 1 and value(metrics, "requests_running") == 0
    assert value(metrics, "model_requests_waiting", model="m") == 1
    metrics.on_request(tflow.tflow(), ex)
    assert value(metrics, "requests_waiting") == 0
    assert value(metrics, "backend_requests_running", model="m", backend="a") == 1
    other = exchange()
    metrics.enqueue(other)
    metrics.dequeue(other)
    assert value(metrics, "requests_waiting") == 0
    metrics.enqueue(other)
    metrics.on_finish(tflow.tflow(), other)  # its client left
    assert value(metrics, "requests_waiting") == 0


def test_retries_by_reason(metrics: GatewayMetrics) -> None:
    """Two attempts failed; after the last there was no other."""
    ex = exchange(outcome="upstream_error")
    assert ex.plan is not None
    ex.plan.attempts, ex.plan.failures = 2, ("refused", "status")
    metrics.on_finish(tflow.tflow(), ex)
    assert value(metrics, "retries_total", reason="refused") == 1
    assert value(metrics, "retries_total", reason="status") is None


def test_models_that_become_labels_are_bounded() -> None:
    metrics = GatewayMetrics(CollectorRegistry(), 2048, lambda model: True)
    for n in range(MAX_MODELS + 5):
        metrics.on_finish(tflow.tflow(), exchange(model=f"m{n}"))
    assert value(metrics, "requests_total", **{**WHERE, "model": "other"}, outcome="ok", status="200") == 5


def test_under_vllms_names_too() -> None:
    metrics = GatewayMetrics(CollectorRegistry(), 2048, lambda model: model == "m", "proxy", models=lambda: ["m"])
    labels = {"model_name": "m", "engine": "proxy"}

    def told(name: str, **more: str) -> float | None:
        return metrics.registry.get_sample_value(f"vllm:{name}", {**labels, **more})

    assert told("request_success_total", finished_reason="stop") == 0  # from the start, as vLLM has it
    ex = exchange()
    ex.summary = Summary(choices=[Choice(0, finish_reason="length")], usage=Usage(5, 3, 2, source="upstream"))
    metrics.on_request(tflow.tflow(), ex)
    assert told("num_requests_running") == 1 and told("num_requests_waiting") == 0
    metrics.on_finish(tflow.tflow(), ex)
    assert told("num_requests_running") == 0
    assert told("request_success_total", finished_reason="length") == 1
    assert (told("prompt_tokens_total"), told("generation_tokens_total"), told("prompt_tokens_cached_total")) == (5, 3, 2)
    assert told("request_params_max_tokens_sum") == 2043  # what was left of the context, as vLLM has it
    assert told("request_prefill_time_seconds_sum") == pytest.approx(0.199)
    assert told("request_decode_time_seconds_sum") == pytest.approx(0.4)
    assert told("inter_token_latency_seconds_count") == 2
    aborted = exchange(outcome="client_abort")
    aborted.status = 499
    metrics.on_finish(tflow.tflow(), aborted)
    assert told("generation_tokens_total") == 6 and told("time_to_first_token_seconds_count") == 2
    assert told("e2e_request_latency_seconds_count") == 1 and told("request_prompt_tokens_count") == 1


def test_the_exposition_parses(metrics: GatewayMetrics) -> None:
    metrics.on_finish(tflow.tflow(), exchange())
    families = {f.name for f in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    assert {"llmtap_requests", "llmtap_build_info", "llmtap_time_to_first_token_seconds", "llmtap_hook_errors"} <= families
