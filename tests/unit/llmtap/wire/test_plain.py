from __future__ import annotations

from typing import Any

import orjson
import pytest

from llmtap.core.record import Choice, Summary, Usage
from llmtap.wire.plain import TextDecoder, UsageAssembler


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


LIST = {
    "id": "e",
    "object": "list",
    "created": 1,
    "model": "m",
    "data": [{"embedding": [0.5] * 3000}],
    "usage": {"prompt_tokens": 3},
}
RERANK = {"id": "r", "model": "m", "usage": {"prompt_tokens": 6}, "results": [{"document": {"text": "x" * 9000}}]}
COHERE = {"id": "c", "embeddings": {"float": [[0.5] * 3000]}, "meta": {"billed_units": {"input_tokens": 4}}}


@pytest.mark.parametrize("reply", [LIST, RERANK, COHERE])
def test_skimming_finds_what_parsing_finds(reply: dict[str, Any]) -> None:
    skimmed = UsageAssembler()
    assert skimmed.skim(orjson.dumps(reply))
    assert skimmed.summary() == whole(reply)
    assert skimmed.usage.source == "upstream"


@pytest.mark.parametrize(
    "body",
    [
        orjson.dumps(LIST)[:-1],
        orjson.dumps(LIST)[:-40] + b"]}",
        orjson.dumps({"x": LIST}),  # a usage, but not of the outermost object
        orjson.dumps({**LIST, "usage": None, "data": [{"usage": {"prompt_tokens": 9}}, *LIST["data"]]})[:-13] + b"}",
        orjson.dumps({"id": "e", "data": [{"embedding": [0.5] * 3000}]}),
        orjson.dumps({**LIST, "data": []}),  # small
        b"[" + orjson.dumps(LIST) + b"]",
    ],
)
def test_what_cannot_be_told_apart_is_left_to_parsing(body: bytes) -> None:
    assembler = UsageAssembler()
    assert not assembler.skim(body)
    assert assembler.summary() == Summary()


def test_names_inside_texts_are_not_members() -> None:
    reply = {**RERANK, "results": [{"document": {"text": '"usage":{"prompt_tokens":1}' * 400}}]}
    skimmed = UsageAssembler()
    assert skimmed.skim(orjson.dumps(reply))
    assert skimmed.usage.prompt_tokens == 6


def test_seconds_of_a_recording_and_counts_of_a_tokenizer() -> None:
    assert whole({"text": "Hi", "usage": {"type": "duration", "seconds": 3}}, text=True).meta == {"audio_seconds": 3}
    verbose = {"duration": 2.5, "language": "en", "text": "Hi", "segments": [{"id": 0, "text": "Hi"}], "words": None}
    assert whole(verbose, text=True).meta == {"duration": 2.5, "language": "en"}
    assert whole({"count": 9, "max_model_len": 2048, "tokens": [1]}).meta == {"count": 9, "max_model_len": 2048}
    assert whole({"input_tokens": 9}).meta == {"input_tokens": 9}
    assert whole({"input_tokens": 9}).usage == Usage()  # nothing was computed for it


def test_a_transcription_as_text() -> None:
    decoder = TextDecoder(100)
    assert [decoder.feed(b"1\n00:00:01 --> "), decoder.feed("é".encode()[:1]), decoder.feed("é".encode()[1:])] == [0, 0, 0]
    assert decoder.quick(b"x") == -1
    assert (decoder.close(), decoder.close()) == (1, 0)
    assert decoder.summary.choices == [Choice(0, content="1\n00:00:01 --> é")]
    assert decoder.summary.complete

    long = TextDecoder(3)
    long.feed(b"abc")
    long.feed(b"d")
    long.close()
    assert (long.summary.choices[0].content, long.summary.meta) == ("abc", {"truncated": True})
