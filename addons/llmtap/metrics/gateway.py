"""What the gateway counts of every request.

Prefix `llmtap_`, seconds and bytes, labels bounded by the configuration: `model` is a name a backend serves (else
`other`), `backend`, `endpoint` and `key` come from the configuration. Times to first token come from successful streams
only; a stream that broke off counts what it produced.

It runs once a request, so the usual case is one dictionary lookup that finds a `_Cell` with everything to add to.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from llmtap import __version__
from llmtap.metrics import buckets as b
from llmtap.metrics.families import Counter, Families, Histogram, Number

if TYPE_CHECKING:
    from mitmproxy import http

    from llmtap.exchange import Exchange

WHERE = ("endpoint", "model", "backend", "key")
#: names of models that become labels; more than anybody serves
MAX_MODELS = 1000
_TICK = 10_000  # `Exchange.deltas` are in 0.1 ms


class _Cell:
    """All that is counted under one endpoint, model, backend and key."""

    __slots__ = (
        "cached",
        "e2e",
        "generated",
        "generation_size",
        "inference",
        "itl",
        "overhead",
        "prompt",
        "prompt_size",
        "queue",
        "requests",
        "tpot",
        "ttft",
        "where",
    )

    def __init__(self, m: GatewayMetrics, where: tuple[str, ...]) -> None:
        self.where = where
        self.requests: dict[tuple[str, int | None], Number] = {}
        self.prompt = m.prompt_tokens.at(where)
        self.generated = m.generation_tokens.at(where)
        self.cached = m.cached_tokens.at(where)
        self.ttft = m.ttft.at(where)
        self.itl = m.itl.at(where)
        self.tpot = m.tpot.at(where)
        self.queue = m.queue_time.at(where)
        self.e2e = m.e2e.at(where)
        self.inference = m.inference.at(where)
        self.overhead = m.overhead.at(where)
        self.prompt_size = m.prompt_size.at(where)
        self.generation_size = m.generation_size.at(where)


class GatewayMetrics:
    """Observer: every metric the gateway exports, kept as requests pass."""

    name = "metrics"

    def __init__(self, registry: CollectorRegistry, max_model_len: int, known_model: Callable[[str], bool]) -> None:
        self.registry = registry
        self._known_model = known_model
        self._models: set[str] = set()
        self._cells: dict[tuple[str, str | None, str | None, str | None], _Cell] = {}
        self._running_now: set[Exchange] = set()
        self.families = families = Families()

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return families.add(Counter(f"llmtap_{name}", text, labels))

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return families.add(Counter(f"llmtap_{name}", text, labels, "gauge"))

        def histogram(name: str, text: str, bounds: b.Bounds, labels: tuple[str, ...] = WHERE) -> Histogram:
            return families.add(Histogram(f"llmtap_{name}", text, bounds, labels))

        sizes = b.token_buckets(max_model_len)
        self.requests = counter("requests", "Requests by how they ended.", (*WHERE, "outcome", "status"))
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens, as the backend counted them.", WHERE)
        self.generation_tokens = counter("generation_tokens", "Generated tokens.", WHERE)
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens the backend had in its prefix cache.", WHERE)
        self.refusals = counter("refusals", "Requests answered with an error by the gateway itself.", ("code",))
        self.running = gauge("requests_running", "Requests at a backend now.")
        self.running.set_function(lambda: len(self._running_now))
        self.queue_time = histogram("queue_time_seconds", "Waiting for a free place at a backend.", b.LATENCY)
        self.ttft = histogram("time_to_first_token_seconds", "Request head to first generated content, streams.", b.TTFT)
        self.itl = histogram("inter_token_latency_seconds", "Gaps between pieces of generated content.", b.ITL)
        self.tpot = histogram("time_per_output_token_seconds", "Mean time per token after the first.", b.ITL)
        self.e2e = histogram("e2e_request_latency_seconds", "Request head to end of the reply.", b.LATENCY)
        self.inference = histogram("inference_time_seconds", "Forwarding to end of the reply.", b.LATENCY)
        self.overhead = histogram("overhead_seconds", "The gateway's own share of the time.", b.OVERHEAD)
        self.prompt_size = histogram("request_prompt_tokens", "Prompt tokens per request.", sizes)
        self.generation_size = histogram("request_generation_tokens", "Generated tokens per request.", sizes)
        self.backend_failures = counter("backend_failures", "Failed attempts to use a backend.", ("backend", "reason"))
        self.hook_errors = counter("hook_errors", "Exceptions caught in a step of the gateway.", ("addon", "hook"))
        self.tee_errors = counter("tee_errors", "Replies that could not be decoded (passed on all the same).", ())
        self.capture_dropped = counter("capture_dropped", "Captured parts that could not be written.", ("reason",))
        self.limit_storage_errors = counter("rate_limit_storage_errors", "Failures of the Redis that shares limits.", ())
        self.backend_up = gauge("backend_up", "1 while the backend passes its health check.", ("backend",))
        self.spool_bytes = gauge("spool_bytes", "Size of the capture log not yet in the database.")
        info = gauge("build_info", "Version of llmtap and Python.", ("version", "python"))
        info.labels(__version__, platform.python_version()).set(1)
        registry.register(families)

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.plan is not None:
            self._running_now.add(ex)

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self._running_now.discard(ex)
        cell = self._cells.get((ex.endpoint.name, ex.model, ex.backend, ex.key_name)) or self._cell(ex)
        (cell.requests.get((ex.outcome, ex.status)) or self._ending(cell, ex)).value += 1
        if ex.refusal is not None:
            self.refusals.labels(ex.refusal.code).inc()
        forwarded, finished = ex.forwarded, ex.finished
        if forwarded is None or finished is None:
            return
        cell.e2e.observe(finished - ex.started)
        cell.inference.observe(finished - forwarded)
        cell.queue.observe(ex.queue_s)
        overhead = ex.overhead_s
        if overhead is not None:
            cell.overhead.observe(overhead)
        summary = ex.summary
        if summary is None:
            return
        usage = summary.usage
        generated = usage.completion_tokens
        if usage.prompt_tokens is not None:
            cell.prompt.value += usage.prompt_tokens
            cell.prompt_size.observe(usage.prompt_tokens)
        if generated is not None:
            cell.generated.value += generated
            cell.generation_size.observe(generated)
        if usage.cached_tokens:
            cell.cached.value += usage.cached_tokens
        first, last, status = ex.first_content, ex.last_chunk, ex.status
        if first is None or last is None or status is None or not 200 <= status < 300 or not ex.stream:
            return
        cell.ttft.observe(first - ex.started)
        if len(ex.deltas) > 1:
            cell.itl.observe_sorted(sorted(ex.deltas[1:]), 1 / _TICK)
        if generated is not None and generated > 1:
            cell.tpot.observe((last - first) / (generated - 1))

    def _cell(self, ex: Exchange) -> _Cell:
        """The cell of an exchange that the table does not know yet. What clients write never becomes a key of the table."""
        model = self._label(ex.model)
        bounded = (ex.endpoint.name, model, ex.backend, ex.key_name)
        cell = self._cells.get(bounded)
        if cell is None:
            cell = _Cell(self, (ex.endpoint.name, model, ex.backend or "none", ex.key_name or "anonymous"))
            self._cells[bounded] = cell
        if ex.model is None:
            self._cells[ex.endpoint.name, None, ex.backend, ex.key_name] = cell
        return cell

    def _label(self, model: str | None) -> str:
        if model is None or (model not in self._models and not self._known_model(model)):
            return "other"
        if model not in self._models:
            if len(self._models) >= MAX_MODELS:
                return "other"
            self._models.add(model)
        return model

    def _ending(self, cell: _Cell, ex: Exchange) -> Number:
        number = self.requests.at((*cell.where, ex.outcome, str(ex.status or 0)))
        cell.requests[ex.outcome, ex.status] = number
        return number
