"""The gateway's metrics for anybody's own service: count requests, queue times, tokens and latencies in a few calls.

    recorder = MetricsRecorder(registry, model="my-model")
    with recorder.request(stream=True) as request:
        request.admitted()                      # it has left the queue
        for chunk in upstream: request.token()
        request.usage(prompt_tokens=12, generation_tokens=40)

The families are those of the gateway (`llmtap_...`) and, with `vllm_names`, vLLM's own (`vllm:...`), in a registry of the
caller's. Needs nothing of mitmproxy. All calls may come from any thread. Times are seconds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmtap.core.snapshot import snapshot
from llmtap.metrics.measures import ANONYMOUS, NONE, OTHER, Cell, Measures, token_gaps
from llmtap.metrics.recorded import RecordedRequest
from llmtap.metrics.vllm_names import VllmNames

_TICK = 10_000


class _Locked(Collector):
    """The families, collected while nobody counts."""

    def __init__(self, measures: Measures, lock: threading.RLock) -> None:
        self._families = measures.families
        self._lock = lock

    def describe(self) -> list[Metric]:
        return list(self._families.describe())

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            found = list(self._families.collect())
        return iter(found)


class MetricsRecorder:
    """Counts into `registry` (a new one when none is given).

    `model`, `endpoint`, `backend` and `key` are the labels of calls that name none; what is passed to a call becomes a label, so
    pass names you know, not what clients write. `max_model_len` sizes the token buckets as vLLM does. `vllm_names` exports
    everything under vLLM's names too, with `engine_label` as `engine`. Raises ValueError when the registry has such
    families already.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        model: str = OTHER,
        *,
        endpoint: str = "chat",
        backend: str = NONE,
        key: str = ANONYMOUS,
        max_model_len: int = 32768,
        vllm_names: bool = False,
        engine_label: str = "proxy",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._lock = threading.RLock()
        self._measures = m = Measures(max_model_len)
        self._model, self._endpoint, self._backend, self._key = model, endpoint, backend, key
        self._max_model_len = max_model_len
        self._clock = clock
        self._cells: dict[tuple[str, str, str, str], Cell] = {}
        self._running: Counter[tuple[str, str]] = Counter()
        self._waiting: Counter[str] = Counter()
        m.running.set_function(self._running.total)
        m.waiting.set_function(self._waiting.total)
        m.backend_running.read_from(lambda: [(where, n) for where, n in self._running.items()])
        m.model_waiting.read_from(lambda: [((model,), n) for model, n in self._waiting.items()])
        self._vllm: VllmNames | None = None
        if vllm_names:
            self._vllm = VllmNames(
                m.families, engine_label, max_model_len, self._running_by_model, self._waiting.items, models=lambda: (model,)
            )
        self.registry.register(_Locked(m, self._lock))

    # ---- one request from its start to its end

    def request(
        self,
        model: str | None = None,
        *,
        stream: bool = False,
        endpoint: str | None = None,
        backend: str | None = None,
        key: str | None = None,
    ) -> RecordedRequest:
        """A request that has just come: it waits until `admitted` is called. Use it as a context manager."""
        return RecordedRequest(
            self,
            model or self._model,
            stream,
            endpoint or self._endpoint,
            backend or self._backend,
            key or self._key,
            self._clock,
        )

    # ---- single numbers

    def increment_waiting(self, model: str | None = None, by: int = 1) -> None:
        """A request waits to be sent to a backend."""
        with self._lock:
            self._waiting[model or self._model] += by

    def decrement_waiting(self, model: str | None = None, by: int = 1) -> None:
        """A request waits no more."""
        self.increment_waiting(model, -by)

    def increment_running(self, model: str | None = None, backend: str | None = None, by: int = 1) -> None:
        """A request is at a backend."""
        with self._lock:
            self._running[model or self._model, backend or self._backend] += by

    def decrement_running(self, model: str | None = None, backend: str | None = None, by: int = 1) -> None:
        """A request has left its backend."""
        self.increment_running(model, backend, -by)

    def observe_queue_time(self, seconds: float, model: str | None = None, **where: str) -> None:
        """How long a request waited before it was sent to a backend."""
        with self._lock:
            self._cell(model, **where).queue.observe(seconds)
            if self._vllm is not None:
                self._vllm.at(model or self._model).queue.observe(seconds)

    def observe_time_to_first_token(self, seconds: float, model: str | None = None, **where: str) -> None:
        """From a request's arrival to the first content of its stream. Only for streams that began with a 2xx."""
        with self._lock:
            self._cell(model, **where).ttft.observe(seconds)
            if self._vllm is not None:
                self._vllm.at(model or self._model).ttft.observe(seconds)

    def observe_inter_token_latency(self, seconds: float, model: str | None = None, **where: str) -> None:
        """From one token of a stream to the next."""
        with self._lock:
            cell = self._cell(model, **where)
            cell.itl.observe(seconds)
            cell.chunks.observe(seconds)
            if self._vllm is not None:
                self._vllm.at(model or self._model).itl.observe(seconds)

    def observe_overhead(self, seconds: float, model: str | None = None, **where: str) -> None:
        """Your own service's share of a request's time."""
        with self._lock:
            self._cell(model, **where).overhead.observe(seconds)

    def observe_batch(self, size: int, wait_seconds: float, model: str | None = None) -> None:
        """Requests that were sent to a backend as one, and how long the first of them waited."""
        with self._lock:
            self._measures.batch_size.observe(size, model or self._model)
            self._measures.batch_wait.observe(wait_seconds, model or self._model)

    def count_refusal(self, code: str) -> None:
        """A request that was answered with an error of your own (`rate_limit_exceeded`, ...)."""
        with self._lock:
            self._measures.refusals.labels(code).inc()

    def count_retry(self, reason: str) -> None:
        """Another attempt at a backend, after one that failed for `reason`."""
        with self._lock:
            self._measures.retries.labels(reason).inc()

    def count_cache_lookup(self, result: str) -> None:
        """A look into a response cache: `hit`, `miss`, ..."""
        with self._lock:
            self._measures.cache_lookups.labels(result).inc()

    def count_cost(self, usd: float, model: str | None = None, **where: str) -> None:
        """What a request cost."""
        with self._lock:
            self._cell(model, **where).cost.value += usd

    def finalize_request(
        self,
        model: str | None = None,
        *,
        outcome: str = "ok",
        status: int = 200,
        finish_reason: str | Iterable[str | None] | None = "stop",
        prompt_tokens: int | None = None,
        generation_tokens: int | None = None,
        cached_tokens: int | None = None,
        e2e_seconds: float | None = None,
        inference_seconds: float | None = None,
        prefill_seconds: float | None = None,
        decode_seconds: float | None = None,
        queue_seconds: float | None = None,
        n: int = 1,
        max_tokens: int | None = None,
        endpoint: str | None = None,
        backend: str | None = None,
        key: str | None = None,
    ) -> None:
        """The end of a request, whatever its outcome (`ok`, `client_abort`, `upstream_error`, `timeout`, `rejected`, `cached`).

        `finish_reason`: one, or one for each choice. `queue_seconds` is for those who do not call `observe_queue_time`.
        `prefill_seconds` and `decode_seconds` (of streams): from sending to the first token, from the first to the last.
        """
        reasons = [finish_reason] if finish_reason is None or isinstance(finish_reason, str) else list(finish_reason)
        choices = max(1, len(reasons))
        with self._lock:
            cell = self._cell(model, endpoint, backend, key)
            m = self._measures
            m.requests.at((*cell.where, outcome, str(status))).value += 1
            if e2e_seconds is not None:
                cell.e2e.observe(e2e_seconds)
            if inference_seconds is not None:
                cell.inference.observe(inference_seconds)
            if queue_seconds is not None:
                cell.queue.observe(queue_seconds)
            if prompt_tokens is not None:
                cell.prompt.value += prompt_tokens * n
                cell.prompt_size.observe(prompt_tokens)
            if generation_tokens is not None:
                cell.generated.value += generation_tokens
                cell.generation_size.observe(generation_tokens)
                if decode_seconds is not None and generation_tokens > choices:
                    cell.tpot.observe(decode_seconds * choices / (generation_tokens - choices))
            if cached_tokens:
                cell.cached.value += cached_tokens
            if self._vllm is None:
                return
            name = cell.where[1]
            self._vllm.produced(name, prompt_tokens, generation_tokens, cached_tokens, n=n, choices=choices)
            if outcome == "ok":
                self._vllm.finished(
                    name,
                    reasons,
                    prompt_tokens,
                    generation_tokens,
                    n=n,
                    max_tokens=max_tokens if max_tokens is not None else self._max_model_len - (prompt_tokens or 0),
                    e2e_s=e2e_seconds,
                    queue_s=queue_seconds,
                    inference_s=inference_seconds,
                    first_s=prefill_seconds,
                    decode_s=decode_seconds,
                )

    # ---- reading

    def snapshot(self) -> dict[str, Any]:
        """Every metric of the registry as plain data, as the gateway's `/internal/metrics`:
        `{name: {"type", "help", "samples": [{"name", "labels", "value"}]}}`."""
        return snapshot(self.registry)

    # ---- inside

    def _running_by_model(self) -> list[tuple[str, int]]:
        models: Counter[str] = Counter()
        for (model, _), n in self._running.items():
            models[model] += n
        return list(models.items())

    def _cell(self, model: str | None, endpoint: str | None = None, backend: str | None = None, key: str | None = None) -> Cell:
        where = (endpoint or self._endpoint, model or self._model, backend or self._backend, key or self._key)
        cell = self._cells.get(where)
        if cell is None:
            cell = self._cells[where] = Cell(self._measures, where)
        return cell

    def observe_gaps(self, gaps: list[int], choices: int, tokens: int | None, model: str, **where: str) -> None:
        """The gaps between the pieces of a whole stream, in 0.1 ms; see `token_gaps`."""
        if not gaps:
            return
        with self._lock:
            cell = self._cell(model, **where)
            times = token_gaps(gaps, choices, tokens)
            cell.itl.observe_sorted(*times)
            cell.chunks.observe_sorted(sorted(gaps), 1 / _TICK)
            if self._vllm is not None:
                self._vllm.at(cell.where[1]).itl.observe_sorted(*times)
