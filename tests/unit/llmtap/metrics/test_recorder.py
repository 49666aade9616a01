"""The recorder for other people's services."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmtap.metrics import MetricsRecorder

WHERE = {"endpoint": "chat", "model": "m", "backend": "none", "key": "anonymous"}


@pytest.fixture
def recorder() -> MetricsRecorder:
    return MetricsRecorder(CollectorRegistry(), model="m", max_model_len=2048, vllm_names=True)


def value(recorder: MetricsRecorder, name: str, **labels: str) -> float | None:
    return recorder.registry.get_sample_value(name, labels)


def test_it_needs_nothing_of_mitmproxy() -> None:
    code = "import sys; sys.modules['mitmproxy'] = None; from llmtap.metrics import MetricsRecorder; MetricsRecorder().snapshot()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_single_numbers(recorder: MetricsRecorder) -> None:
    recorder.increment_waiting()
    recorder.increment_waiting()
    recorder.decrement_waiting()
    recorder.increment_running(backend="gpu0")
    recorder.observe_queue_time(0.5)
    recorder.observe_time_to_first_token(0.03)
    recorder.observe_inter_token_latency(0.02)
    recorder.observe_overhead(0.001)
    recorder.observe_batch(4, 0.01)
    recorder.count_refusal("queue_full")
    recorder.count_retry("refused")
    recorder.count_cache_lookup("hit")
    recorder.count_cost(0.25)
    assert value(recorder, "llmtap_requests_waiting") == 1 and value(recorder, "llmtap_requests_running") == 1
    assert value(recorder, "llmtap_backend_requests_running", model="m", backend="gpu0") == 1
    assert value(recorder, "vllm:num_requests_waiting", model_name="m", engine="proxy") == 1
    for name in ("queue_time_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds", "overhead_seconds"):
        assert value(recorder, f"llmtap_{name}_count", **WHERE) == 1, name
    assert value(recorder, "llmtap_batch_size_sum", model="m") == 4
    assert value(recorder, "llmtap_refusals_total", code="queue_full") == 1
    assert value(recorder, "llmtap_retries_total", reason="refused") == 1
    assert value(recorder, "llmtap_cache_lookups_total", result="hit") == 1
    assert value(recorder, "llmtap_cost_usd_total", **WHERE) == 0.25
    assert value(recorder, "vllm:request_queue_time_seconds_sum", model_name="m", engine="proxy") == 0.5


def test_the_end_of_a_request(recorder: MetricsRecorder) -> None:
    recorder.finalize_request(
        prompt_tokens=7,
        generation_tokens=11,
        cached_tokens=2,
        e2e_seconds=1.0,
        inference_seconds=0.9,
        queue_seconds=0.1,
        decode_seconds=0.5,
        prefill_seconds=0.4,
    )
    recorder.finalize_request(outcome="upstream_error", status=502, finish_reason=None)
    assert value(recorder, "llmtap_requests_total", **WHERE, outcome="ok", status="200") == 1
    assert value(recorder, "llmtap_requests_total", **WHERE, outcome="upstream_error", status="502") == 1
    assert value(recorder, "llmtap_prompt_tokens_total", **WHERE) == 7
    assert value(recorder, "llmtap_time_per_output_token_seconds_sum", **WHERE) == pytest.approx(0.05)
    labels = {"model_name": "m", "engine": "proxy"}
    assert value(recorder, "vllm:request_success_total", **labels, finished_reason="stop") == 1
    assert value(recorder, "vllm:request_prefill_time_seconds_sum", **labels) == 0.4
    assert value(recorder, "vllm:request_params_max_tokens_sum", **labels) == 2041


def test_a_snapshot_is_plain_data(recorder: MetricsRecorder) -> None:
    recorder.finalize_request(generation_tokens=3, e2e_seconds=0.4)
    found = json.loads(json.dumps(recorder.snapshot()))
    assert found["llmtap_requests"]["samples"] == [
        {"name": "llmtap_requests_total", "labels": {**WHERE, "outcome": "ok", "status": "200"}, "value": 1}
    ]
    assert found["llmtap_e2e_request_latency_seconds"]["type"] == "histogram"


def test_the_callers_registry_and_its_names() -> None:
    registry = CollectorRegistry()
    recorder = MetricsRecorder(registry, model="m")
    recorder.finalize_request()
    names = {f.name for f in text_string_to_metric_families(generate_latest(registry).decode())}
    assert "llmtap_requests" in names and not any(name.startswith("vllm:") for name in names)
    with pytest.raises(ValueError, match="Duplicated"):
        MetricsRecorder(registry)


def test_threads_lose_nothing(recorder: MetricsRecorder) -> None:
    def work() -> None:
        for _ in range(300):
            with recorder.request(stream=True) as request:
                request.admitted()
                request.token()
                request.usage(1, 2)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        generate_latest(recorder.registry)
    for thread in threads:
        thread.join()
    assert value(recorder, "llmtap_requests_total", **WHERE, outcome="ok", status="200") == 2400
    assert value(recorder, "llmtap_generation_tokens_total", **WHERE) == 4800
    assert value(recorder, "llmtap_requests_running") == value(recorder, "llmtap_requests_waiting") == 0
