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
from typing import Any, Self

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmtap.core.snapshot import snapshot
from llmtap.metrics.measures import ANONYMOUS, NONE, OTHER, Cell, Measures, token_gaps
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
        return RecordedRequest(self, model or self._model, stream, endpoint or self._endpoint, backend or self._backend, key)

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
        **where: str,
    ) -> None:
        """The end of a request, whatever its outcome (`ok`, `client_abort`, `upstream_error`, `timeout`, `rejected`, `cached`).

        `finish_reason`: one, or one for each choice. `queue_seconds` is for those who do not call `observe_queue_time`.
        `prefill_seconds` and `decode_seconds` (of streams): from sending to the first token, from the first to the last.
        """
        reasons = [finish_reason] if finish_reason is None or isinstance(finish_reason, str) else list(finish_reason)
        choices = max(1, len(reasons))
        with self._lock:
            cell = self._cell(model, **where)
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

    def _gaps(self, cell: Cell, gaps: list[int], choices: int, tokens: int | None) -> None:
        with self._lock:
            times = token_gaps(gaps, choices, tokens)
            cell.itl.observe_sorted(*times)
            cell.chunks.observe_sorted(sorted(gaps), 1 / _TICK)
            if self._vllm is not None:
                self._vllm.at(cell.where[1]).itl.observe_sorted(*times)


class RecordedRequest:
    """One request, timed by calls as it goes. Leaving the `with` block ends it: `ok`, or by the exception `client_abort`
    (cancelled, generator closed), `timeout` or `upstream_error`, unless `outcome` was called. Its calls come one at a time."""

    def __init__(self, recorder: MetricsRecorder, model: str, stream: bool, endpoint: str, backend: str, key: str | None) -> None:
        self._recorder = recorder
        self._clock = recorder._clock
        self._model, self._stream, self._backend = model, stream, backend
        self._where = {"endpoint": endpoint, "backend": backend, **({"key": key} if key else {})}
        self._started = self._clock()
        self._sent: float | None = None
        self._first: float | None = None
        self._last: float | None = None
        self._gaps: list[int] = []
        self._tokens = 0
        self._usage: tuple[int | None, int | None, int | None] = (None, None, None)
        self._reasons: list[str | None] = ["stop"]
        self._end: tuple[str, int] | None = None
        self._over = False
        recorder.increment_waiting(model)

    def admitted(self) -> None:
        """It is sent to a backend now. Waiting ends, running begins; later calls do nothing."""
        if self._sent is None and not self._over:
            self._sent = self._clock()
            self._recorder.decrement_waiting(self._model)
            self._recorder.increment_running(self._model, self._backend)

    def token(self, count: int = 1) -> None:
        """A piece of generated content has come (not the role chunk); `count`: how many tokens it is, as far as you know."""
        now = self._clock()
        if self._first is None:
            self._first = now
        elif self._last is not None:
            self._gaps.append(round((now - self._last) * _TICK))
        self._last = now
        self._tokens += count

    def usage(
        self, prompt_tokens: int | None = None, generation_tokens: int | None = None, cached_tokens: int | None = None
    ) -> None:
        """What the server counted. Without it, a stream's tokens are those told by `token`."""
        self._usage = (prompt_tokens, generation_tokens, cached_tokens)

    def finish(self, *reasons: str | None) -> None:
        """The finish reason of each choice."""
        self._reasons = list(reasons)

    def outcome(self, outcome: str, status: int) -> None:
        """How it ended, where leaving the block does not tell."""
        self._end = (outcome, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """End it. Only the first call counts."""
        if self._over:
            return
        self._over = True
        now, recorder = self._clock(), self._recorder
        if self._sent is None:
            recorder.decrement_waiting(self._model)
        else:
            recorder.decrement_running(self._model, self._backend)
        outcome, status = self._end or _outcome(error)
        prompt, generated, cached = self._usage
        if generated is None and self._stream and self._tokens:
            generated = self._tokens
        good_stream = self._stream and 200 <= status < 300 or outcome == "client_abort"
        decode = None
        if self._first is not None and self._last is not None and good_stream:
            recorder.observe_time_to_first_token(self._first - self._started, self._model, **self._where)
            with recorder._lock:
                cell = recorder._cell(self._model, **self._where)
                recorder._gaps(cell, self._gaps, len(self._reasons) or 1, generated)
            decode = self._last - self._first
        sent = self._sent
        recorder.finalize_request(
            self._model,
            outcome=outcome,
            status=status,
            finish_reason=self._reasons,
            prompt_tokens=prompt,
            generation_tokens=generated,
            cached_tokens=cached,
            e2e_seconds=now - self._started if sent is not None else None,
            inference_seconds=now - sent if sent is not None else None,
            queue_seconds=sent - self._started if sent is not None else None,
            prefill_seconds=self._first - sent if sent is not None and self._first is not None and decode is not None else None,
            decode_seconds=decode,
            **self._where,
        )


def _outcome(error: BaseException | None) -> tuple[str, int]:
    if error is None:
        return "ok", 200
    if isinstance(error, TimeoutError):
        return "timeout", 504
    if isinstance(error, Exception):
        return "upstream_error", 502
    return "client_abort", 499  # cancelled, or the generator of the reply was closed
