"""Prometheus metrics of the gateway, in a registry that is passed in.

Prefix `llmtap_`, seconds and bytes, labels bounded by the configuration: `model` is a name a backend serves (else
`other`), `backend`, `endpoint` and `key` come from the configuration. Latency buckets are vLLM's own, so that a panel
drawn for vLLM reads ours unchanged. Times to first token come from successful streams only.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llmtap import __version__

if TYPE_CHECKING:
    from mitmproxy import http

    from llmtap.exchange import Exchange

# vLLM 0.33, vllm/v1/metrics/loggers.py
TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
)
ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
LATENCY = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
    7680.0,
)
OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


def token_buckets(max_model_len: int) -> tuple[float, ...]:
    """1-2-5 series up to `max_model_len`, as vLLM's `build_1_2_5_buckets` (2048 gives 1, 2, 5, ... 1000, 2000)."""
    out: list[float] = []
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale > max_model_len:
                return tuple(out)
            out.append(float(step * scale))
        scale *= 10


class GatewayMetrics:
    """Observer: every metric the gateway exports, kept as requests pass."""

    name = "metrics"

    def __init__(self, registry: CollectorRegistry, max_model_len: int, known_model: Callable[[str], bool]) -> None:
        self.registry = registry
        self._known_model = known_model
        where = ["endpoint", "model", "backend", "key"]

        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(f"llmtap_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"llmtap_{name}", text, where, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests by how they ended.", [*where, "outcome", "status"])
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens, as the backend counted them.", where)
        self.generation_tokens = counter("generation_tokens", "Generated tokens.", where)
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens the backend had in its prefix cache.", where)
        self.refusals = counter("refusals", "Requests answered with an error by the gateway itself.", ["code"])
        self.backend_failures = counter("backend_failures", "Failed attempts to use a backend.", ["backend", "reason"])
        self.hook_errors = counter("hook_errors", "Exceptions caught in a step of the gateway.", ["addon", "hook"])
        self.tee_errors = Counter(
            "llmtap_tee_errors", "Replies that could not be decoded (passed on all the same).", registry=registry
        )
        self.capture_dropped = counter("capture_dropped", "Captured parts that could not be written.", ["reason"])
        self.running = Gauge("llmtap_requests_running", "Requests at a backend now.", registry=registry)
        self.backend_up = Gauge(
            "llmtap_backend_up", "1 while the backend passes its health check.", ["backend"], registry=registry
        )
        self.spool_bytes = Gauge("llmtap_spool_bytes", "Size of the capture log not yet in the database.", registry=registry)
        self.ttft = histogram("time_to_first_token_seconds", "Request head to first generated content, streams.", TTFT)
        self.itl = histogram("inter_token_latency_seconds", "Gaps between pieces of generated content.", ITL)
        self.tpot = histogram("time_per_output_token_seconds", "Mean time per token after the first.", ITL)
        self.e2e = histogram("e2e_request_latency_seconds", "Request head to end of the reply.", LATENCY)
        self.inference = histogram("inference_time_seconds", "Forwarding to end of the reply.", LATENCY)
        self.overhead = histogram("overhead_seconds", "The gateway's own share of the time.", OVERHEAD)
        self.prompt_size = histogram("request_prompt_tokens", "Prompt tokens per request.", token_buckets(max_model_len))
        self.generation_size = histogram(
            "request_generation_tokens", "Generated tokens per request.", token_buckets(max_model_len)
        )
        info = Gauge("llmtap_build_info", "Version of llmtap and Python.", ["version", "python"], registry=registry)
        info.labels(__version__, platform.python_version()).set(1)
        self._running_now: set[str] = set()

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.plan is not None:
            self._running_now.add(ex.uid)
            self.running.set(len(self._running_now))

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self._running_now.discard(ex.uid)
        self.running.set(len(self._running_now))
        model = ex.model
        model = model if model is not None and self._known_model(model) else "other"
        where = (ex.endpoint.name, model, ex.backend or "none", ex.key_name or "anonymous")
        self.requests.labels(*where, ex.outcome, str(ex.status or 0)).inc()
        if ex.refusal is not None:
            self.refusals.labels(ex.refusal.code).inc()
        if ex.forwarded is None:
            return
        if ex.duration_s is not None:
            self.e2e.labels(*where).observe(ex.duration_s)
            self.inference.labels(*where).observe(max(0.0, ex.duration_s - (ex.forwarded - ex.started)))
        if ex.overhead_s is not None:
            self.overhead.labels(*where).observe(ex.overhead_s)
        usage = ex.summary.usage if ex.summary else None
        if usage is not None:
            self._tokens(where, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        self._stream(where, ex, usage.completion_tokens if usage else None)

    def _tokens(self, where: tuple[str, ...], prompt: int | None, generated: int | None, cached: int | None) -> None:
        if prompt is not None:
            self.prompt_tokens.labels(*where).inc(prompt)
            self.prompt_size.labels(*where).observe(prompt)
        if generated is not None:
            self.generation_tokens.labels(*where).inc(generated)
            self.generation_size.labels(*where).observe(generated)
        if cached:
            self.cached_tokens.labels(*where).inc(cached)

    def _stream(self, where: tuple[str, ...], ex: Exchange, generated: int | None) -> None:
        if not ex.stream or ex.ttft_s is None or ex.status is None or ex.status >= 300:
            return
        self.ttft.labels(*where).observe(ex.ttft_s)
        observe = self.itl.labels(*where).observe
        for gap in ex.deltas[1:]:
            observe(gap / 10_000)
        if generated is not None and generated > 1 and ex.last_chunk is not None and ex.first_content is not None:
            self.tpot.labels(*where).observe((ex.last_chunk - ex.first_content) / (generated - 1))
