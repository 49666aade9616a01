"""The same measurements under vLLM's own names, labels (`model_name`, `engine`) and buckets, for servers that export none.

Names, help texts, labels and buckets are those of vLLM 0.33 (a scrape of it is in `fixtures/metrics`, and a test compares);
so is what is counted when: a request whose client went away counts its first token and its tokens, and is in none of the
`request_*`, `e2e` and `request_success` families. What only the engine can know (KV cache, preemptions, batches, speculation)
is not there, see `NOT_SEEN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from llmtap.metrics import buckets as b
from llmtap.metrics.families import Counter, Families, Histogram, Labels

LABELS = ("model_name", "engine")
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")
#: why a reply ended as its protocol says it → as vLLM's engine says it (tool calls end with an ordinary stop there)
_REASONS = {"length": "length", "max_tokens": "length", "error": "error", "abort": "abort", "repetition": "repetition"}
_CACHE = "the engine's own cache"
_ENGINE = "inside the engine"
#: families of vLLM that nobody in front of it can know, and why
NOT_SEEN: dict[str, str] = {
    "vllm:estimated_flops_per_gpu_total": _ENGINE,
    "vllm:estimated_read_bytes_per_gpu_total": _ENGINE,
    "vllm:estimated_write_bytes_per_gpu_total": _ENGINE,
    "vllm:num_requests_waiting_by_reason": _ENGINE,
    "vllm:engine_sleep_state": _ENGINE,
    "vllm:kv_cache_usage_perc": _CACHE,
    "vllm:prefix_cache_queries_total": _CACHE,
    "vllm:prefix_cache_hits_total": _CACHE,
    "vllm:external_prefix_cache_queries_total": _CACHE,
    "vllm:external_prefix_cache_hits_total": _CACHE,
    "vllm:mm_cache_queries_total": _CACHE,
    "vllm:mm_cache_hits_total": _CACHE,
    "vllm:prompt_tokens_by_source_total": _CACHE,
    "vllm:prompt_tokens_cached_by_source_total": _CACHE,
    "vllm:request_prefill_kv_computed_tokens": _CACHE,
    "vllm:cache_config_info": _CACHE,
    "vllm:num_preemptions_total": _ENGINE,
    "vllm:request_num_preemptions": _ENGINE,
    "vllm:iteration_tokens_total": _ENGINE,
    "vllm:admission_rejections_total": _ENGINE,
    "vllm:tool_call_parser_invocations_total": _ENGINE,
}


class _Cell:
    """All that is counted for one model."""

    def __init__(self, names: VllmNames, model: str) -> None:
        at = (model, names.engine)
        self.prompt = names.prompt_tokens.at(at)
        self.cached = names.cached_tokens.at(at)
        self.generated = names.generation_tokens.at(at)
        self.success = {reason: names.success.at((*at, reason)) for reason in FINISHED_REASONS}
        self.prompt_size = names.prompt_size.at(at)
        self.generation_size = names.generation_size.at(at)
        self.max_generation = names.max_generation.at(at)
        self.params_n = names.params_n.at(at)
        self.params_max_tokens = names.params_max_tokens.at(at)
        self.ttft = names.ttft.at(at)
        self.itl = names.itl.at(at)
        self.tpot = names.tpot.at(at)
        self.e2e = names.e2e.at(at)
        self.queue = names.queue.at(at)
        self.inference = names.inference.at(at)
        self.prefill = names.prefill.at(at)
        self.decode = names.decode.at(at)


class VllmNames:
    """vLLM's families, added to `families`. Asked at a scrape: `running` and `waiting` for (model, how many) pairs, `models` for
    the names to export from the start."""

    def __init__(
        self,
        families: Families,
        engine: str,
        max_model_len: int,
        running: Callable[[], Iterable[tuple[str, int]]],
        waiting: Callable[[], Iterable[tuple[str, int]]],
        models: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.engine = engine
        self._cells: dict[str, _Cell] = {}

        def served() -> None:
            for model in models():
                self.at(model)

        families.before(served)

        def gauge(name: str, text: str, source: Callable[[], Iterable[tuple[str, int]]]) -> Counter:
            family = families.add(Counter(f"vllm:{name}", text, LABELS, "gauge"))

            def read() -> Iterable[tuple[Labels, float]]:
                now = dict.fromkeys(self._cells, 0) | dict(source())
                return [((model, engine), number) for model, number in now.items()]

            family.read_from(read)
            return family

        def counter(name: str, text: str, *more: str) -> Counter:
            return families.add(Counter(f"vllm:{name}", text, (*LABELS, *more), zeros=True))

        def histogram(name: str, text: str, bounds: b.Bounds) -> Histogram:
            return families.add(Histogram(f"vllm:{name}", text, bounds, LABELS, zeros=True))

        tokens = b.token_buckets(max_model_len)
        gauge("num_requests_running", "Number of requests in model execution batches.", running)
        gauge("num_requests_waiting", "Number of requests waiting to be processed.", waiting)
        self.prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        self.cached_tokens = counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).")
        self.generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        self.success = counter("request_success", "Count of successfully processed requests.", "finished_reason")
        self.prompt_size = histogram("request_prompt_tokens", "Number of prefill tokens processed.", tokens)
        self.generation_size = histogram("request_generation_tokens", "Number of generation tokens processed.", tokens)
        self.max_generation = histogram(
            "request_max_num_generation_tokens", "Histogram of maximum number of requested generation tokens.", tokens
        )
        self.params_n = histogram("request_params_n", "Histogram of the n request parameter.", b.N)
        self.params_max_tokens = histogram("request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens)
        self.ttft = histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", b.TTFT)
        self.itl = histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", b.ITL)
        self.tpot = histogram(
            "request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.", b.ITL
        )
        self.e2e = histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", b.LATENCY)
        phase = "Histogram of time spent in {} phase for request."
        self.queue = histogram("request_queue_time_seconds", phase.format("WAITING"), b.LATENCY)
        self.inference = histogram("request_inference_time_seconds", phase.format("RUNNING"), b.LATENCY)
        self.prefill = histogram("request_prefill_time_seconds", phase.format("PREFILL"), b.LATENCY)
        self.decode = histogram("request_decode_time_seconds", phase.format("DECODE"), b.LATENCY)

    def at(self, model: str) -> _Cell:
        """What is counted for a model; it is exported from now on."""
        cell = self._cells.get(model)
        if cell is None:
            cell = self._cells[model] = _Cell(self, model)
        return cell

    def produced(
        self,
        model: str,
        prompt: int | None,
        generated: int | None,
        cached: int | None,
        *,
        n: int = 1,
        choices: int = 1,
        times: tuple[float, tuple[list[int], float, float]] | None = None,
    ) -> None:
        """Tokens of a reply, complete or not, and for streams its times in seconds: to the first token, and the gaps as
        `token_gaps` gives them. The prompt counts once for each of `n` choices."""
        cell = self.at(model)
        if prompt is not None:
            cell.prompt.value += prompt * n
        if generated is not None:
            cell.generated.value += generated
        if cached:
            cell.cached.value += cached
        if times is not None:
            cell.ttft.observe(times[0], choices)
            gaps, scale, copies = times[1]
            cell.itl.observe_sorted(gaps, scale, copies)

    def finished(
        self,
        model: str,
        reasons: Sequence[str | None],
        prompt: int | None,
        generated: int | None,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        e2e_s: float | None,
        queue_s: float | None,
        inference_s: float | None,
        first_s: float | None = None,
        decode_s: float | None = None,
    ) -> None:
        """A request that came to its end: one `request_*` observation for each of its sequences, as vLLM has it.

        `reasons`: why each sequence ended, in its protocol's words. `first_s`: from forwarding to the first token, known of
        streams only. Tokens are those of all sequences together; each is taken to have its share.
        """
        cell = self.at(model)
        sequences = max(1, len(reasons))
        requests = max(1, sequences // max(1, n))  # several prompts are several requests of n sequences each
        for reason in reasons or (None,):
            cell.success[_REASONS.get(reason or "", "stop")].value += 1
        for histo, seconds in ((cell.e2e, e2e_s), (cell.queue, queue_s), (cell.inference, inference_s)):
            if seconds is not None:
                histo.observe(seconds, sequences)
        if first_s is not None and decode_s is not None:
            cell.prefill.observe(first_s, sequences)
            cell.decode.observe(decode_s, sequences)
            if generated is not None:
                each = generated / sequences
                cell.tpot.observe(decode_s / (each - 1) if each > 1 else 0.0, sequences)
        if prompt is not None:
            cell.prompt_size.observe(prompt / requests, sequences)
        if generated is not None:
            cell.generation_size.observe(generated / sequences, sequences)
            cell.max_generation.observe(generated / sequences, requests)
        cell.params_n.observe(n, requests)
        if max_tokens is not None:
            cell.params_max_tokens.observe(max_tokens, sequences)
