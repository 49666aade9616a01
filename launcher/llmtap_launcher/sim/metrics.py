"""What the simulated engine counts, under vLLM's own names, in a registry of its own.

As in vLLM's Python frontend, a request whose client went away counts in time to first token and in generation tokens, but not in
`request_success_total`, end-to-end latency or any `request_*` histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from . import families as f

#: what vLLM 0.33 says it is
CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
_LABELS = ("model_name", "engine")


@dataclass(slots=True)
class Timeline:
    """When a sequence arrived, was scheduled, gave its first and its last token: loop clock, seconds."""

    arrived: float
    scheduled: float = 0.0
    first: float = 0.0
    last: float = 0.0


class Metrics:
    """vLLM's metric families for one served model."""

    def __init__(self, model: str, max_model_len: int) -> None:
        self.registry = registry = CollectorRegistry()
        self._labels = (model, "0")
        GCCollector(registry=registry)
        PlatformCollector(registry=registry)
        ProcessCollector(registry=registry)
        for name, text in f.IDLE_COUNTERS_BEFORE:
            self._counter(name, text)
        self.running = self._gauge("vllm:num_requests_running", "Number of requests in model execution batches.")
        self.waiting = self._gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.")
        by_reason = Gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = "
            "deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals "
            "vllm:num_requests_waiting.",
            (*_LABELS, "reason"),
            registry=registry,
        )
        self._waiting_by_reason = {reason: by_reason.labels(*self._labels, reason) for reason in f.WAITING_REASONS}
        sleep = Gauge(
            "vllm:engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 "
            "means sleep level 1; discard_all = 1 means sleep level 2.",
            (*_LABELS, "sleep_state"),
            registry=registry,
        )
        for state, value in f.SLEEP_STATES.items():
            sleep.labels(*self._labels, state).set(value)
        self.kv_usage = self._gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self._prefix_queries = self._counter(
            "vllm:prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."
        )
        for name, text in f.IDLE_COUNTERS:
            self._counter(name, text)
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        by_source = self._labelled(
            "vllm:prompt_tokens_by_source", "Number of prompt tokens by source.", "source", f.PROMPT_SOURCES
        )
        self._computed = by_source["local_compute"]
        self._counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external).")
        self._labelled(
            "vllm:prompt_tokens_cached_by_source",
            "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, "
            "p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to "
            "vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
            "source",
            f.CACHE_TIERS,
        )
        self._generation_tokens = self._counter("vllm:generation_tokens", "Number of generation tokens processed.")
        self._success = self._labelled(
            "vllm:request_success", "Count of successfully processed requests.", "finished_reason", f.FINISHED_REASONS
        )
        rejections = Counter(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            ("model_name", "reason"),
            registry=registry,
        )
        for reason in f.REJECTION_REASONS:
            rejections.labels(model, reason)
        tokens = f.token_buckets(max_model_len)
        hist = self._histogram
        self._request_prompt = hist("vllm:request_prompt_tokens", "Number of prefill tokens processed.", tokens)
        self._request_generation = hist("vllm:request_generation_tokens", "Number of generation tokens processed.", tokens)
        self._iteration = hist("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", f.ITERATION)
        self._request_max_generation = hist(
            "vllm:request_max_num_generation_tokens", "Histogram of maximum number of requested generation tokens.", tokens
        )
        self._request_n = hist("vllm:request_params_n", "Histogram of the n request parameter.", f.N)
        self._request_max_tokens = hist(
            "vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens
        )
        self._ttft = hist("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", f.TTFT)
        self._itl = hist("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", f.ITL)
        self._tpot = hist(
            "vllm:request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.", f.ITL
        )
        self._e2e = hist("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", f.LATENCY)
        phase = "Histogram of time spent in {} phase for request."
        self._queue = hist("vllm:request_queue_time_seconds", phase.format("WAITING"), f.LATENCY)
        self._inference = hist("vllm:request_inference_time_seconds", phase.format("RUNNING"), f.LATENCY)
        self._prefill = hist("vllm:request_prefill_time_seconds", phase.format("PREFILL"), f.LATENCY)
        self._decode = hist("vllm:request_decode_time_seconds", phase.format("DECODE"), f.LATENCY)
        self._preemptions = hist(
            "vllm:request_num_preemptions", "Histogram of the number of times a request was preempted.", f.PREEMPTIONS
        )
        self._request_computed = hist(
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            tokens,
        )
        config = Gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            (*f.CACHE_CONFIG, "engine"),
            registry=registry,
        )
        config.labels(*f.CACHE_CONFIG.values(), "0").set(1)
        parser = Counter(
            "vllm:tool_call_parser_invocations",
            "Total number of ToolParser invocations. Non-streaming increments once per choice; streaming increments once per "
            "delta.",
            ("model_name", "mode", "outcome", "request_type"),
            registry=registry,
        )
        self._parser = {labels: parser.labels(model, *labels) for labels in f.PARSER_LABELS}

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self.registry).labels(*self._labels)

    def _labelled(self, name: str, text: str, label: str, values: tuple[str, ...]) -> dict[str, Counter]:
        family = Counter(name, text, (*_LABELS, label), registry=self.registry)
        return {value: family.labels(*self._labels, value) for value in values}

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self.registry).labels(*self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _LABELS, buckets=buckets, registry=self.registry).labels(*self._labels)

    def queue_changed(self, running: int, waiting: int) -> None:
        """Sets the gauges of the scheduler."""
        self.running.set(running)
        self.waiting.set(waiting)
        self._waiting_by_reason["capacity"].set(waiting)

    def scheduled(self, prompt_tokens: int) -> None:
        """A sequence left the waiting queue and its prompt was taken in."""
        self._prefix_queries.inc(prompt_tokens)

    def first_token(self, prompt_tokens: int, ttft_s: float) -> None:
        """The first token of a sequence."""
        self._prompt_tokens.inc(prompt_tokens)
        self._computed.inc(prompt_tokens)
        self._ttft.observe(ttft_s)
        self._generation_tokens.inc()

    def next_token(self, gap_s: float) -> None:
        """Any later token, `gap_s` seconds after the one before."""
        self._itl.observe(gap_s)
        self._generation_tokens.inc()

    def iteration(self, tokens: int) -> None:
        """One step of the engine produced `tokens` tokens over all running sequences."""
        self._iteration.observe(tokens)

    def request_done(self, n: int, longest: int) -> None:
        """All `n` choices of one request are complete; the longest has `longest` tokens."""
        self._request_n.observe(n)
        self._request_max_generation.observe(longest)

    def sequence_done(self, reason: str, prompt_tokens: int, tokens: int, max_tokens: int, at: Timeline) -> None:
        """One choice of a request is complete (`reason`: stop or length)."""
        self._success[reason].inc()
        self._request_prompt.observe(prompt_tokens)
        self._request_computed.observe(prompt_tokens)
        self._request_generation.observe(tokens)
        self._request_max_tokens.observe(max_tokens)
        self._e2e.observe(at.last - at.arrived)
        self._queue.observe(at.scheduled - at.arrived)
        self._inference.observe(at.last - at.scheduled)
        self._prefill.observe(at.first - at.scheduled)
        self._decode.observe(at.last - at.first)
        self._tpot.observe((at.last - at.first) / (tokens - 1) if tokens > 1 else 0.0)
        self._preemptions.observe(0)

    def tool_parser(self, mode: str, outcome: str, times: int = 1) -> None:
        """The tool call parser ran on a chat completion.

        `mode`: streaming or non_streaming; `outcome`: tool_call or no_tool_call.
        """
        self._parser[mode, outcome, "chat_completions"].inc(times)

    def counts(self) -> tuple[int, int]:
        """Prompt and generated tokens so far, as `/metrics` tells them."""
        return int(self._prompt_tokens._value.get()), int(self._generation_tokens._value.get())

    def scrape(self) -> bytes:
        """The body of `/metrics`, in the text format whatever the client accepts, as vLLM's."""
        return generate_latest(self.registry)
