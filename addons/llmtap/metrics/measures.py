"""The families every user of llmtap's metrics shares, and what is counted under one set of labels: `Cell`.

Names, labels and buckets are a published interface (dashboards read them). The gateway and `MetricsRecorder` fill the
same families, each from what it sees.
"""

from __future__ import annotations

import platform

from llmtap import __version__
from llmtap.metrics import buckets as b
from llmtap.metrics.families import Counter, Families, Histogram, Number, Together

WHERE = ("endpoint", "model", "backend", "key")
#: label values where there is nothing to tell
OTHER, NONE, ANONYMOUS = "other", "none", "anonymous"
_TICK = 10_000  # gaps between pieces of a stream are kept in 0.1 ms
#: tokens a piece, above which pieces are taken to bear several: below it the difference is the end-of-text token and markup
_SEVERAL = 1.25


class Measures:
    """All families, in the order of the documentation. `families` is the collector to register."""

    def __init__(self, max_model_len: int) -> None:
        self.families = families = Families()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return families.add(Counter(f"llmtap_{name}", text, labels))

        def gauge(name: str, text: str, labels: tuple[str, ...] = (), together: Together = "sum") -> Counter:
            return families.add(Counter(f"llmtap_{name}", text, labels, "gauge", together=together))

        def histogram(name: str, text: str, bounds: b.Bounds, labels: tuple[str, ...] = WHERE) -> Histogram:
            return families.add(Histogram(f"llmtap_{name}", text, bounds, labels))

        sizes = b.token_buckets(max_model_len)
        self.requests = counter("requests", "Requests by how they ended.", (*WHERE, "outcome", "status"))
        self.running = gauge("requests_running", "Requests at a backend now.")
        self.waiting = gauge("requests_waiting", "Requests that wait for a free place at a backend now.")
        self.backend_running = gauge("backend_requests_running", "The same, by model and backend.", ("model", "backend"))
        self.model_waiting = gauge("model_requests_waiting", "Waiting requests by model.", ("model",))
        self.prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens, as the backend counted them; n times for n choices, as vLLM counts.", WHERE
        )
        self.generation_tokens = counter("generation_tokens", "Generated tokens; of broken streams, what had come.", WHERE)
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens the backend had in its prefix cache.", WHERE)
        self.cost = counter("cost_usd", "Cost of the tokens, by the prices of the configuration.", WHERE)
        self.ttft = histogram("time_to_first_token_seconds", "Request head to first generated content, streams.", b.TTFT)
        self.itl = histogram("inter_token_latency_seconds", "Time from token to token of one choice, streams.", b.ITL)
        self.chunks = histogram("inter_chunk_latency_seconds", "Gaps between pieces of content as they came, streams.", b.ITL)
        self.tpot = histogram("time_per_output_token_seconds", "Mean time per token after the first, streams.", b.ITL)
        self.e2e = histogram("e2e_request_latency_seconds", "Request head to end of the reply.", b.LATENCY)
        self.queue_time = histogram("queue_time_seconds", "Waiting for a free place at a backend.", b.LATENCY)
        self.inference = histogram("inference_time_seconds", "Forwarding to end of the reply.", b.LATENCY)
        self.overhead = histogram(
            "overhead_seconds", "The gateway's own share: before forwarding (queue apart) and after the last byte.", b.OVERHEAD
        )
        self.prompt_size = histogram("request_prompt_tokens", "Prompt tokens per request.", sizes)
        self.generation_size = histogram("request_generation_tokens", "Generated tokens per request.", sizes)
        self.batch_size = histogram("batch_size", "Requests sent to a backend as one.", b.BATCH_SIZE, ("model",))
        self.batch_wait = histogram("batch_wait_seconds", "Waiting for a batch to fill.", b.BATCH_WAIT, ("model",))
        self.refusals = counter("refusals", "Requests answered with an error by the gateway itself.", ("code",))
        self.retries = counter("retries", "Further attempts at a backend, by why the one before failed.", ("reason",))
        self.backend_failures = counter("backend_failures", "Failed attempts to use a backend.", ("backend", "reason"))
        self.backend_changes = counter("backend_state_changes", "Changes of a backend's state, to which.", ("backend", "state"))
        self.backend_up = gauge("backend_up", "1 while the backend passes its health check.", ("backend",), "max")
        self.hook_errors = counter("hook_errors", "Exceptions caught in a step of the gateway.", ("addon", "hook"))
        self.tee_errors = counter("tee_errors", "Replies that could not be decoded (passed on all the same).")
        self.cache_lookups = counter("cache_lookups", "Requests by what the cache had for them.", ("result",))
        self.limit_storage_errors = counter("rate_limit_storage_errors", "Failures of the Redis that shares limits.", ())
        self.capture_dropped = counter("capture_dropped", "Captured parts that could not be written.", ("reason",))
        self.spool_bytes = gauge("spool_bytes", "Size of the capture log not yet in the database.", (), "max")
        self.spool_lag = gauge(
            "spool_lag_seconds", "Age of the oldest captured record that is not yet in the database.", (), "max"
        )
        self.writer_trouble = gauge(
            "writer_trouble", "1 for what keeps captured records from the database just now, else 0.", ("trouble",), "max"
        )
        self.quarantined = gauge("quarantined_records", "Captured records put aside since the writer's start.", (), "max")
        info = gauge("build_info", "Version of llmtap and Python.", ("version", "python"), "max")
        info.labels(__version__, platform.python_version()).set(1)


class Cell:
    """All that is counted under one endpoint, model, backend and key."""

    __slots__ = (
        "cached",
        "chunks",
        "cost",
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

    def __init__(self, m: Measures, where: tuple[str, str, str, str]) -> None:
        self.where = where
        self.requests: dict[tuple[str, int | None], Number] = {}
        self.prompt = m.prompt_tokens.at(where)
        self.generated = m.generation_tokens.at(where)
        self.cached = m.cached_tokens.at(where)
        self.cost = m.cost.at(where)
        self.ttft = m.ttft.at(where)
        self.itl = m.itl.at(where)
        self.chunks = m.chunks.at(where)
        self.tpot = m.tpot.at(where)
        self.queue = m.queue_time.at(where)
        self.e2e = m.e2e.at(where)
        self.inference = m.inference.at(where)
        self.overhead = m.overhead.at(where)
        self.prompt_size = m.prompt_size.at(where)
        self.generation_size = m.generation_size.at(where)


def token_gaps(gaps: list[int], choices: int, tokens: int | None) -> tuple[list[int], float, float]:
    """Inter-token times from the gaps between pieces of content (0.1 ms): (gaps in ascending order, scale to seconds of a
    token, tokens a gap), for `Histo.observe_sorted`.

    `gaps`: one for each piece after the first; `tokens`: what the server counted, None when it did not.
    A piece a token, one choice: the gaps are exact. Several choices come interleaved: the gap of a piece is then the time to
    the piece `choices` places before, exact while they take turns. Where pieces bear several tokens (speculative decoding,
    `--stream-interval`), each piece's time is shared out evenly: the number of tokens and the sum of times are exact, how they
    differ within a piece nobody can see.
    """
    if choices > 1:
        gaps = [sum(gaps[i : i + choices]) for i in range(len(gaps) - choices + 1)]
    gaps = sorted(gaps)
    pieces, after_first = len(gaps), tokens - choices if tokens is not None else 0
    if pieces and after_first > _SEVERAL * pieces:
        return gaps, pieces / after_first / _TICK, after_first / pieces
    return gaps, 1 / _TICK, 1.0
