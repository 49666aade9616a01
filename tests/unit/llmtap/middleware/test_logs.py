"""A log read back as records of the shape that users of the old middleware know."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtap.core.errors import SpoolError
from llmtap.core.record import Choice, ToolCall
from llmtap.middleware.logs import iter_logs, load_logs
from support.records import START_US, begin, chat, end, sink, summary


def test_calls(tmp_path: Path) -> None:
    log = sink(tmp_path)
    log.write_begin(begin("late", chat("second", temperature=0.5, stream=True), at_us=START_US + 5, metadata={"user": "u1"}))
    log.write_begin(begin("early", at_us=START_US))
    log.write_begin(
        begin("text", b'{"model":"m","prompt":"Once","n":2}', path="/v1/completions", endpoint="completions", at_us=START_US + 7)
    )
    log.write_begin(begin("open", at_us=START_US + 9))
    log.write_end(end("late", "fine"))
    call = ToolCall(0, "c1", name="f", arguments='{"a":1}')
    log.write_end(end("early", summary=summary(Choice(0, reasoning="hm", tool_calls=[call], finish_reason="tool_calls"))))
    log.write_end(end("text", None, summary=None, outcome="upstream_error", error_message="gone", status=502))
    log.close()
    early, late, text, unfinished = load_logs(tmp_path)
    assert [r.request_id for r in (early, late, text, unfinished)] == ["early", "late", "text", "open"]
    assert late.to_dict() == {
        "timestamp": "2026-11-21T01:35:23.456005+00:00",
        "request_id": "late",
        "model": "m",
        "messages": [{"role": "user", "content": "second"}],
        "response": {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "served",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15},
        },
        "parameters": {"temperature": 0.5, "stream": True},
        "latency_ms": 1000.0,
        "error": None,
        "metadata": {"user": "u1"},
    }
    assert early.response is not None
    assert early.response["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }
    assert (text.messages, text.parameters, text.response, text.error) == (["Once"], {"n": 2}, None, "gone")
    assert (unfinished.error, unfinished.latency_ms) == ("unfinished", None)


def test_an_end_in_an_earlier_file_and_damage(tmp_path: Path) -> None:
    first, second = sink(tmp_path, worker="a"), sink(tmp_path, worker="b")
    first.write_end(end("u1", "yes"))
    second.write_begin(begin("u1"))
    first.close()
    second.close()
    path = next((tmp_path / "spool").glob("a-*"))
    path.write_bytes(b"damaged\n" + path.read_bytes() + b"torn")
    (record,) = iter_logs(tmp_path)
    assert record.error is None
    assert next(iter_logs(tmp_path / "spool")).request_id == "u1"


def test_no_folder(tmp_path: Path) -> None:
    assert load_logs(tmp_path) == []
    with pytest.raises(SpoolError, match="no such log folder"):
        load_logs(tmp_path / "none")
