"""Packing a reply and getting the very same back."""

from __future__ import annotations

import pytest

from llmtap.core.record import Choice, Summary, ToolCall, Usage
from llmtap.policy.answer import Answer, pack, unpack

SUMMARY = Summary(
    response_id="r",
    model="m",
    choices=[Choice(0, content="é\n", tool_calls=[ToolCall(0, "id", name="f", arguments="{}")], finish_reason="stop")],
    usage=Usage(3, 4, 1, None, "upstream"),
    complete=True,
    meta={"system_fingerprint": "f"},
)


def test_there_and_back() -> None:
    answer = Answer(True, "text/event-stream", b"data: {}\n\ndata: [DONE]\n\n\x00\xff", SUMMARY, ((0, 10), (20, 14)))
    again = unpack(pack(answer))
    assert again is not None
    assert (again.streamed, again.content_type, again.body) == (True, answer.content_type, answer.body)
    assert again.pieces == answer.pieces and again.summary == SUMMARY and again.forms == {}
    assert again.size == answer.size > 2000


@pytest.mark.parametrize("data", [b"", b"{}", b"nonsense\nbody", b'{"v":99}\n', b"[1]\n", b'{"v":1,"pieces":[]}\n', b"\xff"])
def test_what_is_not_ours_is_nothing(data: bytes) -> None:
    assert unpack(data) is None
