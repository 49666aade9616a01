from __future__ import annotations

from typing import Any

import orjson
import pytest

from llmtap.core.errors import WireError
from llmtap.core.record import Choice, Usage
from llmtap.wire.assembler import Assembler
from llmtap.wire.openai import OpenAIAssembler


class Words(Assembler):
    """The least an assembler can be."""

    def take(self, name: str, event: dict[str, Any]) -> bool:
        self.identify(event)
        self.take_error(event)
        self.note("extra", event.get("extra"))
        self.token_ids += len(event.get("ids", ()))
        self.complete = bool(event.get("end"))
        return "word" in event

    def take_whole(self, reply: dict[str, Any]) -> bool:
        return self.take("", reply)

    def choices(self) -> list[Choice]:
        return []


def words(*events: bytes) -> Words:
    assembler = Words()
    for event in events:
        assembler.event("", event)
    assembler.finish()
    return assembler


def test_completion_tokens_of_a_stream_without_usage_are_estimated_from_its_content_events() -> None:
    assert words(b'{"word":1}', b'{"role":1}', b'{"word":1}').usage == Usage(completion_tokens=2, source="estimated")
    assert words(b'{"word":1,"ids":[1,2,3]}', b'{"ids":[4]}').usage == Usage(completion_tokens=4, source="estimated")


def test_several_tokens_in_one_event_are_seen_by_their_words() -> None:
    assembler = OpenAIAssembler()
    for text in ("One two three", " four", " five six"):
        assembler.event("", orjson.dumps({"choices": [{"index": 0, "delta": {"reasoning": text}}]}))
    assembler.finish()
    assert assembler.usage == Usage(completion_tokens=6, source="estimated")


def test_nothing_is_estimated_for_a_stream_without_content_or_a_whole_reply() -> None:
    assert words(b'{"role":1}').usage == Usage()
    assembler = Words()
    assert assembler.whole({"word": 1})
    assembler.finish()
    assert assembler.usage == Usage()
    assert assembler.complete


def test_events_after_the_end_and_empty_ones_are_not_read() -> None:
    assembler = words(b"", b" ", b'{"end":1}', b"never parsed")
    assert assembler.complete
    assert not assembler.event("", b'{"word":1}')


def test_what_was_there_before_a_fault_stays() -> None:
    assembler = words(b'{"id":"a","model":"m","extra":{"x":1}}', b'{"id":"b","extra":"y"}')
    with pytest.raises(WireError):
        assembler.event("", b"[1]")
    summary = assembler.summary()
    assert (summary.response_id, summary.model, summary.meta, summary.complete) == ("a", "m", {"extra": "y"}, False)


def test_an_error_without_a_type_has_the_type_error() -> None:
    assembler = words(b'{"error":"broken"}')
    assert (assembler.error_type, assembler.error_message) == ("error", "broken")
