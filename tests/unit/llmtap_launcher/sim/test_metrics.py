"""The scrape of the simulation against the recorded scrape of vLLM 0.33: families, types, help, labels, buckets."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmtap_launcher.sim.metrics import CONTENT_TYPE, Metrics, Timeline
from support import recordings

RECORDED = recordings.load("vllm-0.33.0/metrics")


def families(text: str) -> dict[str, Any]:
    return {f.name: f for f in text_string_to_metric_families(text) if not f.name.startswith("http_")}


def scrape(metrics: Metrics) -> dict[str, Any]:
    return families(metrics.scrape().decode())


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model_name": "tiny", "engine": "0", **labels})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("tiny", 2048)


def test_the_same_families_in_the_same_order(metrics: Metrics) -> None:
    assert [*scrape(metrics)] == [*families(RECORDED.body.decode())]


@pytest.mark.parametrize("name", [*families(RECORDED.body.decode())])
def test_each_family_has_vllms_type_help_labels_and_buckets(metrics: Metrics, name: str) -> None:
    ours, theirs = scrape(metrics)[name], families(RECORDED.body.decode())[name]
    assert (ours.type, ours.documentation) == (theirs.type, theirs.documentation)
    if name == "python_info":
        return

    def samples(family: Any) -> list[tuple[str, dict[str, str]]]:
        return [(s.name, s.labels) for s in family.samples]

    assert samples(ours) == samples(theirs)


def test_the_text_looks_the_same_too(metrics: Metrics) -> None:
    """Lines without their values, so that label order and `le` spelling count as well."""

    def lines(body: bytes) -> list[str]:
        found = [line for line in body.decode().splitlines() if "vllm:" in line]
        return [line if line.startswith("#") else line.rpartition(" ")[0] for line in found]

    assert lines(metrics.scrape()) == lines(RECORDED.body)
    assert RECORDED.content_type == CONTENT_TYPE


def test_a_finished_sequence(metrics: Metrics) -> None:
    metrics.scheduled(9)
    metrics.first_token(9, 0.03)
    metrics.next_token(0.01)
    metrics.next_token(0.02)
    metrics.iteration(1)
    metrics.sequence_done("stop", 9, 3, 40, Timeline(arrived=1.0, scheduled=1.5, first=2.0, last=4.0))
    metrics.request_done(2, 3)
    assert value(metrics, "vllm:prompt_tokens_total") == 9
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="local_compute") == 9
    assert value(metrics, "vllm:prefix_cache_queries_total") == 9
    assert value(metrics, "vllm:generation_tokens_total") == 3
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(metrics, "vllm:time_to_first_token_seconds_sum") == 0.03
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 2
    assert value(metrics, "vllm:e2e_request_latency_seconds_sum") == 3.0
    assert value(metrics, "vllm:request_queue_time_seconds_sum") == 0.5
    assert value(metrics, "vllm:request_inference_time_seconds_sum") == 2.5
    assert value(metrics, "vllm:request_prefill_time_seconds_sum") == 0.5
    assert value(metrics, "vllm:request_decode_time_seconds_sum") == 2.0
    assert value(metrics, "vllm:request_time_per_output_token_seconds_sum") == 1.0
    assert value(metrics, "vllm:request_prompt_tokens_sum") == 9
    assert value(metrics, "vllm:request_generation_tokens_sum") == 3
    assert value(metrics, "vllm:request_params_max_tokens_sum") == 40
    assert value(metrics, "vllm:request_params_n_sum") == 2
    assert value(metrics, "vllm:request_max_num_generation_tokens_sum") == 3
    assert value(metrics, "vllm:iteration_tokens_total_count") == 1


def test_one_token_has_no_time_per_output_token(metrics: Metrics) -> None:
    metrics.sequence_done("length", 9, 1, 1, Timeline(1.0, 1.0, 2.0, 2.0))
    assert value(metrics, "vllm:request_time_per_output_token_seconds_sum") == 0


def test_the_scheduler_gauges(metrics: Metrics) -> None:
    metrics.queue_changed(3, 2)
    assert value(metrics, "vllm:num_requests_running") == 3
    assert value(metrics, "vllm:num_requests_waiting") == 2
    assert value(metrics, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2


def test_parser_invocations(metrics: Metrics) -> None:
    metrics.tool_parser("streaming", "tool_call", 5)
    labels = {"model_name": "tiny", "mode": "streaming", "outcome": "tool_call", "request_type": "chat_completions"}
    assert metrics.registry.get_sample_value("vllm:tool_call_parser_invocations_total", labels) == 5


def test_registries_are_apart() -> None:
    first, second = Metrics("tiny", 2048), Metrics("tiny", 2048)
    first.first_token(9, 0.1)
    assert value(second, "vllm:prompt_tokens_total") == 0
