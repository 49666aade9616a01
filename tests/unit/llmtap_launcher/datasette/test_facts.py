from __future__ import annotations

from typing import Any

from llmtap_launcher.datasette import facts
from llmtap_launcher.datasette.conversation import Transcript

ROW: dict[str, Any] = {
    "outcome": "upstream_error",
    "status": 502,
    "error_type": "upstream_error",
    "error_message": "<b>gone</b>",
    "started_at": "2025-11-21T01:36:12.123Z",
    "ttft_ms": None,
    "duration_ms": 1531.0,
    "prompt_tokens": 0,
    "completion_tokens": 12_345,
    "tokens_per_second": 35.24,
    "cost_nanousd": 1_234_000,
    "model_requested": "m",
    "model_response": "m",
    "stream": 0,
    "tags": '["a","b"]',
    "request_bytes": 1200,
    "uid": "01J",
    "request_id": "job-7",
}


def shown(row: dict[str, Any]) -> dict[str, str]:
    return {label: str(value) for _, rows in facts.facts(row) for label, value in rows}


def test_every_fact_in_its_unit() -> None:
    found = shown(ROW)
    assert found["outcome"] == '<span class="badge bad">upstream error</span>'
    assert found["duration"] == "1.53 s" and found["tokens"] == "35.2 / s"
    assert found["completion"] == "12,345" and found["cost"] == "$0.00123"
    assert found["streamed"] == "no" and found["tags"] == "a, b" and found["request"] == "1.2 kB"
    assert found["x-request-id"] == "<code>job-7</code>"


def test_nothing_is_known_of_null_but_zero_is_a_fact() -> None:
    found = shown(ROW)
    assert "first token" not in found
    assert found["prompt"] == "0"


def test_captured_text_is_escaped() -> None:
    assert shown(ROW)["message"] == "&lt;b&gt;gone&lt;/b&gt;"
    assert shown({"tags": "<i>"})["tags"] == "&lt;i&gt;"


def test_one_model_is_named_once_two_are_both_named() -> None:
    assert "model asked for" not in shown(ROW) and shown(ROW)["model"] == "m"
    assert shown({**ROW, "model_response": "M"})["model asked for"] == "m"


def test_groups_without_facts_are_left_out() -> None:
    assert [title for title, _ in facts.facts({"uid": "1"})] == ["Identity"]
    assert facts.facts({}) == []


def test_extras_are_pretty_and_empty_ones_left_out() -> None:
    row = {"params_json": '{"top_k":5}', "metadata_json": "{}", "response_meta_json": None}
    assert facts.extras(Transcript(row)) == [("Parameters", '{\n  "top_k": 5\n}')]
    both = facts.extras(Transcript({"metadata_json": "not json"}, tools='[{"type":"function"}]', meta={"k": 1}))
    assert [title for title, _ in both] == ["Tools offered", "Metadata", "Reply extras"]
    assert both[1][1] == "not json"
