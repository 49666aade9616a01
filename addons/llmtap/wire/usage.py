"""Token counts as the API families write them → `Usage`. A count that is missing or no count stays None."""

from __future__ import annotations

from typing import Any

from llmtap.core.record import Usage
from llmtap.wire.values import integer


def _detail(usage: dict[str, Any], group: str, name: str) -> int | None:
    details = usage.get(group)
    return integer(details.get(name)) if details and type(details) is dict else None


def _usage(prompt: int | None, completion: int | None, cached: int | None, reasoning: int | None) -> Usage | None:
    if prompt is None and completion is None:
        return None
    return Usage(prompt, completion, cached, reasoning, "upstream")


def openai_usage(usage: Any) -> Usage | None:
    """`{prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details, completion_tokens_details}`.

    A reply without generation (embeddings of some servers) may have `total_tokens` only: that is its prompt.
    """
    if type(usage) is not dict:
        return None
    prompt, completion = integer(usage.get("prompt_tokens")), integer(usage.get("completion_tokens"))
    if prompt is None and completion is None:
        prompt = integer(usage.get("total_tokens"))
    cached = reasoning = None
    if "prompt_tokens_details" in usage:
        cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    if "completion_tokens_details" in usage:
        reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    return _usage(prompt, completion, cached, reasoning)


def responses_usage(usage: Any) -> Usage | None:
    """`{input_tokens, output_tokens, input_tokens_details, output_tokens_details}`; `input_tokens` includes cached ones."""
    if type(usage) is not dict:
        return None
    return _usage(
        integer(usage.get("input_tokens")),
        integer(usage.get("output_tokens")),
        _detail(usage, "input_tokens_details", "cached_tokens"),
        _detail(usage, "output_tokens_details", "reasoning_tokens"),
    )


def anthropic_usage(usage: Any) -> Usage | None:
    """`{input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens}`.

    Anthropic's `input_tokens` excludes what was read from or written to its cache. `prompt_tokens` here is all of the
    prompt: input_tokens + cache_read_input_tokens + cache_creation_input_tokens; `cached_tokens` is cache_read_input_tokens.
    """
    if type(usage) is not dict:
        return None
    prompt = integer(usage.get("input_tokens"))
    read, written = integer(usage.get("cache_read_input_tokens")), integer(usage.get("cache_creation_input_tokens"))
    if prompt is not None or read is not None or written is not None:
        prompt = (prompt or 0) + (read or 0) + (written or 0)
    return _usage(prompt, integer(usage.get("output_tokens")), read, None)


def ollama_usage(reply: dict[str, Any]) -> Usage | None:
    """`{prompt_eval_count, eval_count}` beside `total_duration`; Ollama leaves zero counts out of what it has counted."""
    counted = "total_duration" in reply
    prompt, completion = integer(reply.get("prompt_eval_count")), integer(reply.get("eval_count"))
    if counted and "embeddings" not in reply:
        prompt, completion = prompt or 0, completion or 0
    return _usage(prompt, completion, None, None)


def is_zero(usage: Usage) -> bool:
    """Nothing counted: what some servers put on every chunk before the real usage."""
    return not usage.prompt_tokens and not usage.completion_tokens
