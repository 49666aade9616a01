"""Rows of `exchanges` as statistics take them, without a database."""

from __future__ import annotations

from typing import Any


def row(**columns: Any) -> dict[str, Any]:
    """A reply that went well, and was neither priced nor out of a cache; `columns` say otherwise."""
    return {
        "started_at": "2026-11-21T01:35:23.456Z",
        "key_name": "ci",
        "model_requested": "m",
        "model_response": "m",
        "backend": "a",
        "status": 200,
        "outcome": "ok",
        "cache": None,
        "error_type": None,
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "cached_tokens": 2,
        "reasoning_tokens": None,
        "cost_nanousd": 9,
        "price_id": None,
        "ttft_ms": 100.0,
        "duration_ms": 900.0,
        "queue_ms": 0.0,
        "overhead_ms": None,
        "tokens_per_second": 8.0,
    } | columns
