from __future__ import annotations

from typing import Any

import pytest

from llmtap.core.record import Usage
from llmtap.wire import usage


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"prompt_tokens": 9, "total_tokens": 31, "completion_tokens": 22}, Usage(9, 22, None, None, "upstream")),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 22,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(9, 22, 8, 3, "upstream"),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(9, 2, None, None, "upstream")),
        ({"total_tokens": 5}, Usage(5, None, None, None, "upstream")),
        ({"type": "duration", "seconds": 3}, None),
        ({"prompt_tokens": "9", "completion_tokens": -2}, None),
        ({}, None),
        (None, None),
        ([1], None),
    ],
)
def test_openai(raw: Any, expected: Usage | None) -> None:
    assert usage.openai_usage(raw) == expected


def test_responses() -> None:
    raw = {
        "input_tokens": 9,
        "output_tokens": 4,
        "input_tokens_details": {"cached_tokens": 8},
        "output_tokens_details": {"reasoning_tokens": 1},
    }
    assert usage.responses_usage(raw) == Usage(9, 4, 8, 1, "upstream")
    assert usage.responses_usage(None) is None


def test_anthropic_prompt_includes_what_its_input_tokens_exclude() -> None:
    raw = {"input_tokens": 10, "output_tokens": 4, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 5}
    assert usage.anthropic_usage(raw) == Usage(115, 4, 100, None, "upstream")
    assert usage.anthropic_usage({"output_tokens": 4}) == Usage(None, 4, None, None, "upstream")
    assert usage.anthropic_usage({"input_tokens": 10, "cache_read_input_tokens": None}) == Usage(10, None, None, None, "upstream")
    assert usage.anthropic_usage("x") is None


def test_ollama_leaves_zeros_out_of_what_it_counted() -> None:
    assert usage.ollama_usage({"total_duration": 1, "prompt_eval_count": 9, "eval_count": 2}) == Usage(
        9, 2, None, None, "upstream"
    )
    assert usage.ollama_usage({"total_duration": 1, "prompt_eval_count": 9}) == Usage(9, 0, None, None, "upstream")
    assert usage.ollama_usage({"done": True, "done_reason": "load"}) is None
    assert usage.ollama_usage({"embeddings": [[1.0]], "total_duration": 1, "prompt_eval_count": 3}) == Usage(
        3, None, None, None, "upstream"
    )


def test_zero() -> None:
    assert usage.is_zero(Usage(0, 0)) and usage.is_zero(Usage(None, 0))
    assert not usage.is_zero(Usage(9, 0))
