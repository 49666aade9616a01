"""What the gateway counts of every request.

Prefix `llmtap_`, seconds and bytes, labels bounded by the configuration: `model` is a name a backend serves (else
`other`), `backend`, `endpoint` and `key` come from the configuration. Times to first token come from successful streams
only; a stream that broke off counts what it produced.

It runs once a request, so the usual case is one dictionary lookup that finds a `Cell` with everything to add to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from llmtap.metrics.measures import ANONYMOUS, NONE, OTHER, Cell, Measures, token_gaps
from llmtap.metrics.vllm_names import VllmNames

if TYPE_CHECKING:
    from mitmproxy import http

    from llmtap.exchange import Exchange
    from llmtap.metrics.families import Labels, Number

#: names of models that become labels; more than anybody serves
MAX_MODELS = 1000
_TICK = 10_000  # `Exchange.deltas` are in 0.1 ms


class GatewayMetrics(Measures):
    """Observer: every metric the gateway exports, kept as requests pass.

    `known_model` says which names may become labels. `vllm_names`: the value of the label `engine` under vLLM's names, None
    to do without them; `models`: names they are exported for before anybody asked for them.
    """

    name = "metrics"

    def __init__(
        self,
        registry: CollectorRegistry,
        max_model_len: int,
        known_model: Callable[[str], bool],
        vllm_names: str | None = None,
        models: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        super().__init__(max_model_len)
        self.registry = registry
        self._known_model, self._served = known_model, models
        self._max_model_len = max_model_len
        self._models: set[str] = set()
        self._cells: dict[tuple[str, str | None, str | None, str | None], Cell] = {}
        self._running_now: set[Exchange] = set()
        self._waiting_now: set[Exchange] = set()
        self.running.set_function(lambda: len(self._running_now))
        self.waiting.set_function(lambda: len(self._waiting_now))
        self.backend_running.read_from(
            lambda: _counted((self.model_label(ex.model), ex.backend or NONE) for ex in self._running_now)
        )
        self.model_waiting.read_from(lambda: _counted((self.model_label(ex.model),) for ex in self._waiting_now))
        self.vllm: VllmNames | None = None
        if vllm_names is not None:
            self.vllm = VllmNames(
                self.families,
                vllm_names,
                max_model_len,
                running=lambda: self._by_model(self._running_now),
                waiting=lambda: self._by_model(self._waiting_now),
                models=lambda: self._served(),
            )
        registry.register(self.families)

    # ---- as a request passes

    def enqueue(self, ex: Exchange) -> None:
        """It waits for a free place at a backend, until it is forwarded or ends."""
        self._waiting_now.add(ex)

    def dequeue(self, ex: Exchange) -> None:
        """It waits no more. Needed only where neither forwarding nor the end follows at once."""
        self._waiting_now.discard(ex)

    def know_models(self, known: Callable[[str], bool], models: Callable[[], Iterable[str]]) -> None:
        """Another configuration, as for the constructor; models that have a label of their own keep it."""
        self._known_model, self._served = known, models

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.plan is not None:
            self._waiting_now.discard(ex)
            self._running_now.add(ex)

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self._running_now.discard(ex)
        self._waiting_now.discard(ex)
        cell = self._cells.get((ex.endpoint.name, ex.model, ex.backend, ex.key_name)) or self._cell(ex)
        (cell.requests.get((ex.outcome, ex.status)) or self._ending(cell, ex)).value += 1
        if ex.refusal is not None:
            self.refusals.labels(ex.refusal.code).inc()
        plan, forwarded, finished = ex.plan, ex.forwarded, ex.finished
        if plan is not None and plan.failures:
            for reason in plan.failures[: plan.attempts - 1]:
                self.retries.labels(reason).inc()
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
        usage, parsed = summary.usage, ex.parsed
        generated = usage.completion_tokens
        if usage.prompt_tokens is not None:
            # vLLM takes the prompt in once for each choice, and says it once in the usage
            n = min(parsed.n, len(summary.choices)) if parsed is not None and parsed.n else 0
            cell.prompt.value += usage.prompt_tokens * n if n > 1 else usage.prompt_tokens
            cell.prompt_size.observe(usage.prompt_tokens)
        if generated is not None:
            cell.generated.value += generated
            cell.generation_size.observe(generated)
        if usage.cached_tokens:
            cell.cached.value += usage.cached_tokens
        if ex.cost_nano:
            cell.cost.value += ex.cost_nano / 1e9
        if ex.first_content is not None and ex.stream and _began_well(ex):
            self._stream(cell, ex, ex.first_content)
        if self.vllm is not None:
            self._as_vllm(self.vllm, cell, ex)

    def _stream(self, cell: Cell, ex: Exchange, first: float) -> None:
        """The times of a stream that began well."""
        cell.ttft.observe(first - ex.started)
        gaps = ex.deltas[1:]
        choices, tokens = _shown(ex)
        if gaps:
            ordered, scale, copies = token_gaps(gaps, choices, tokens)
            cell.itl.observe_sorted(ordered, scale, copies)
            cell.chunks.observe_sorted(ordered if choices == 1 else sorted(gaps), 1 / _TICK)
        if tokens is not None and tokens > choices and ex.last_chunk is not None:
            cell.tpot.observe((ex.last_chunk - first) * choices / (tokens - choices))

    def _as_vllm(self, vllm: VllmNames, cell: Cell, ex: Exchange) -> None:
        summary, parsed = ex.summary, ex.parsed
        if summary is None or parsed is None or ex.finished is None or ex.forwarded is None:
            return
        usage, ok = summary.usage, ex.outcome == "ok"
        if usage.source == "none":
            return
        model, n = cell.where[1], max(1, min(parsed.n or 1, len(summary.choices)))
        first, last = ex.first_content, ex.last_chunk
        times = None
        if first is not None and last is not None and ex.stream and _began_well(ex):
            choices, tokens = _shown(ex)
            times = (first - ex.started, token_gaps(ex.deltas[1:], choices, tokens))
        vllm.produced(
            model,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            n=n,
            choices=max(1, len(summary.choices)),
            times=times,
        )
        if ok:
            limit = parsed.max_tokens
            if limit is None:
                limit = max(0, self._max_model_len - (usage.prompt_tokens or 0))
            vllm.finished(
                model,
                [choice.finish_reason for choice in summary.choices],
                usage.prompt_tokens,
                usage.completion_tokens,
                n=n,
                max_tokens=limit,
                e2e_s=ex.finished - ex.started,
                queue_s=ex.queue_s,
                inference_s=ex.finished - ex.forwarded,
                first_s=first - ex.forwarded if first is not None and times is not None else None,
                decode_s=last - first if last is not None and first is not None and times is not None else None,
            )

    # ---- labels

    def _cell(self, ex: Exchange) -> Cell:
        """The cell of an exchange that the table does not know yet. What clients write never becomes a key of the table."""
        model = self.model_label(ex.model)
        bounded = (ex.endpoint.name, model, ex.backend, ex.key_name)
        cell = self._cells.get(bounded)
        if cell is None:
            cell = Cell(self, (ex.endpoint.name, model, ex.backend or NONE, ex.key_name or ANONYMOUS))
            self._cells[bounded] = cell
        if ex.model is None:
            self._cells[ex.endpoint.name, None, ex.backend, ex.key_name] = cell
        return cell

    def model_label(self, model: str | None) -> str:
        if model is None or (model not in self._models and not self._known_model(model)):
            return OTHER
        if model not in self._models:
            if len(self._models) >= MAX_MODELS:
                return OTHER
            self._models.add(model)
        return model

    def _ending(self, cell: Cell, ex: Exchange) -> Number:
        number = self.requests.at((*cell.where, ex.outcome, str(ex.status or 0)))
        cell.requests[ex.outcome, ex.status] = number
        return number

    def _by_model(self, exchanges: Iterable[Exchange]) -> list[tuple[str, int]]:
        return [(labels[0], int(n)) for labels, n in _counted((self.model_label(ex.model),) for ex in exchanges)]


def _began_well(ex: Exchange) -> bool:
    """A stream whose client went away has 499, which came after its 200."""
    return ex.status is not None and (200 <= ex.status < 300 or ex.outcome == "client_abort")


def _shown(ex: Exchange) -> tuple[int, int | None]:
    """How many choices a stream had and how many tokens they showed: reasoning that was kept from the client took its time
    before the first piece of content."""
    summary = ex.summary
    if summary is None:
        return 1, None
    usage, choices = summary.usage, summary.choices
    tokens = usage.completion_tokens
    if tokens is not None and usage.reasoning_tokens and not any(choice.reasoning for choice in choices):
        tokens -= usage.reasoning_tokens
    return max(1, len(choices)), tokens


def _counted(labels: Iterable[Labels]) -> list[tuple[Labels, float]]:
    counts: dict[Labels, float] = {}
    for one in labels:
        counts[one] = counts.get(one, 0) + 1
    return list(counts.items())
