from __future__ import annotations

from typing import Any

import orjson
import pytest

from llmtap.core.record import Choice, Summary, Usage
from llmtap.wire.plain import UsageAssembler


def whole(reply: dict[str, Any], *, text: bool = False) -> Summary:
    assembler = UsageAssembler(text=text)
    assembler.whole(reply)
    return assembler.summary()


@pytest.mark.parametrize(
    ("reply", "usage"),
    [
        (
            {"id": "embd-1", "model": "m", "data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": 3, "completion_tokens": 0}},
            Usage(3, 0, source="upstream"),
        ),
        (
            {"id": "score-1", "model": "m", "data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}},
            Usage(5, source="upstream"),
        ),
        ({"id": "rerank-1", "model": "m", "results": [], "usage": {"total_tokens": 7}}, Usage(7, source="upstream")),
        (
            {"id": "embd-1", "embeddings": {"float": [[1.0]]}, "meta": {"billed_units": {"input_tokens": 4}}},
            Usage(4, source="upstream"),
        ),
        ({"count": 9, "tokens": [1, 2]}, Usage()),
        ({"usage": [], "meta": {"billed_units": 3}}, Usage()),
    ],
)
def test_usage_and_no_payload(reply: dict[str, Any], usage: Usage) -> None:
    summary = whole(reply)
    assert summary.usage == usage
    assert summary.choices == []
    assert summary.complete
    assert len(orjson.dumps(summary)) < 400


def test_a_transcription_s_text() -> None:
    reply = {"text": "Hello", "usage": {"type": "duration", "seconds": 3}}
    assert whole(reply, text=True).choices == [Choice(0, content="Hello")]
    assert whole(reply).choices == []


def test_an_error() -> None:
    assert whole({"object": "error", "message": "m", "type": "t"}).error_message == "m"
