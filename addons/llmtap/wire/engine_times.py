"""What an engine says of its own time: `Summary.meta` → seconds, whoever wrote it.

    vLLM (--enable-per-request-metrics)   meta.metrics   queue_time_ms, time_to_first_token_ms, generation_time_ms, mean_itl_ms
    llama.cpp                             meta.timings   prompt_ms, predicted_ms, predicted_per_token_ms
    Ollama                                meta           load_duration, prompt_eval_duration, eval_duration (nanoseconds)

These are the engine's numbers, seen from inside: network, the server's own queueing and the gateway come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmtap.wire.values import integer, number


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """Seconds; None where the engine does not say. `ttft_s`: from its queue to the first token; `itl_s`: mean gap between
    tokens; `prefill_s`, `decode_s`: time on the prompt and on the answer; `load_s`: time to load the model."""

    queue_s: float | None = None
    ttft_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    itl_s: float | None = None
    load_s: float | None = None


def engine_times(meta: dict[str, Any]) -> EngineTimes | None:
    """The times in a summary's `meta`, or None when there are none. Raises nothing."""
    metrics, timings = meta.get("metrics"), meta.get("timings")
    if type(metrics) is dict:
        queue, ttft = _seconds(metrics.get("queue_time_ms"), 1e3), _seconds(metrics.get("time_to_first_token_ms"), 1e3)
        return EngineTimes(
            queue_s=queue,
            ttft_s=ttft,
            decode_s=_seconds(metrics.get("generation_time_ms"), 1e3),
            itl_s=_seconds(metrics.get("mean_itl_ms"), 1e3),
        )
    if type(timings) is dict:
        prompt = _seconds(timings.get("prompt_ms"), 1e3)
        return EngineTimes(
            prefill_s=prompt,
            decode_s=_seconds(timings.get("predicted_ms"), 1e3),
            itl_s=_seconds(timings.get("predicted_per_token_ms"), 1e3),
        )
    if "total_duration" in meta:
        return EngineTimes(
            prefill_s=_seconds(meta.get("prompt_eval_duration"), 1e9),
            decode_s=_seconds(meta.get("eval_duration"), 1e9),
            load_s=_seconds(meta.get("load_duration"), 1e9),
        )
    return None


def counts_of(timings: Any) -> tuple[int, int, int] | None:
    """Prompt (cached tokens included), completion and cached tokens of llama.cpp's `timings`, which come with every reply."""
    if type(timings) is not dict:
        return None
    prompt, completion = integer(timings.get("prompt_n")), integer(timings.get("predicted_n"))
    if prompt is None or completion is None:
        return None
    cached = integer(timings.get("cache_n")) or 0
    return prompt + cached, completion, cached


def _seconds(value: Any, per_second: float) -> float | None:
    found = number(value)
    return found / per_second if found is not None and found >= 0 else None
