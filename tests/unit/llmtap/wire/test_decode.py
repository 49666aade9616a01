"""Every recording against its expectation, and what must hold for any bytes cut anywhere."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.endpoints import endpoint_of
from llmtap.core.errors import WireError
from llmtap.core.record import End, Summary, encode
from llmtap.wire import decode
from llmtap.wire.decode import BodyDecoder, Decoder, ErrorDecoder, NullDecoder, StreamDecoder, decoder_for
from llmtap.wire.ndjson import NdjsonDecoder
from llmtap.wire.ollama import OllamaAssembler
from llmtap.wire.openai import OpenAIAssembler
from llmtap.wire.plain import TextDecoder
from llmtap.wire.sniff import Sniffer
from llmtap.wire.sse import SseDecoder
from support import cutting, naive, recordings
from support.recordings import Recording

EXPECTATIONS: dict[str, dict[str, Any]] = json.loads(naive.EXPECTATIONS.read_text(encoding="utf-8"))
SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"
load = cache(recordings.load)


def run(decoder: Decoder, pieces: list[bytes]) -> tuple[Summary, int, list[str]]:
    """The summary, the content events in all, and the errors raised."""
    count = 0
    errors = []
    for step in [*(lambda piece=piece: decoder.feed(piece) for piece in pieces), decoder.close]:
        try:
            count += step()
        except WireError as error:
            errors.append(str(error))
    return decoder.summary, count, errors


def decoder_of(recording: Recording, name: str) -> Decoder:
    metadata = recording.headers.get("metadata")
    return decoder_for(EXPECTATIONS[name]["endpoint"], recording.content_type, recording.status, metadata=metadata)


def understood(recording: Recording, decoder: Decoder, summary: Summary, count: int) -> dict[str, Any]:
    """A summary in the words of an expectation."""
    usage = summary.usage
    return {
        "endpoint": EXPECTATIONS[recording.name]["endpoint"],
        "status": recording.status,
        "content_type": recording.content_type.split(";")[0],
        "whole_http": recording.complete,
        "understood": decoder.understands,
        "content_events": count,
        "complete": summary.complete,
        "response_id": summary.response_id,
        "model": summary.model,
        "choices": [
            {
                "index": choice.index,
                "role": choice.role,
                "content": choice.content,
                "reasoning": choice.reasoning,
                "finish_reason": choice.finish_reason,
                "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in choice.tool_calls],
            }
            for choice in summary.choices
        ],
        "usage": [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens],
        "usage_source": usage.source,
        "error_type": summary.error_type,
        "error_message": summary.error_message,
        "meta": sorted(summary.meta),
    }


def test_every_recording_has_an_expectation_and_the_other_way_round() -> None:
    assert sorted(EXPECTATIONS) == recordings.names()


@pytest.mark.parametrize("name", recordings.names())
def test_recording(name: str) -> None:
    recording = load(name)
    decoder = decoder_of(recording, name)
    summary, count, errors = run(decoder, recording.chunks)
    assert errors == []
    assert understood(recording, decoder, summary, count) == EXPECTATIONS[name]


@pytest.mark.parametrize("name", recordings.names())
def test_the_endpoint_table_agrees_with_the_expectations(name: str) -> None:
    recording = load(name)
    endpoint = endpoint_of(recording.path) if recording.path.startswith("/v1") else None
    if endpoint is not None:
        assert EXPECTATIONS[name]["endpoint"] == endpoint.name


@pytest.mark.parametrize("name", [name for name in recordings.names() if len(load(name).body) < 4000])
def test_recording_byte_by_byte_and_whole(name: str) -> None:
    recording = load(name)
    for pieces in (cutting.bytewise(recording.body), [recording.body], [b"", recording.body, b""]):
        decoder = decoder_of(recording, name)
        summary, count, errors = run(decoder, pieces)
        assert errors == []
        assert understood(recording, decoder, summary, count) == EXPECTATIONS[name]


STREAMS = [
    name
    for name in recordings.names()
    if EXPECTATIONS[name]["understood"] and len(load(name).body) < 20_000 and len(load(name).chunks) > 1
]


@given(st.sampled_from(STREAMS), cutting.cuts)
def test_any_cut_gives_the_same_summary_and_the_same_count(name: str, cuts: list[int]) -> None:
    recording = load(name)
    decoder = decoder_of(recording, name)
    summary, count, _ = run(decoder, cutting.at(recording.body, cuts))
    assert understood(recording, decoder, summary, count) == EXPECTATIONS[name]


@given(st.sampled_from(STREAMS), st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=3)), max_size=6), cutting.cuts)
def test_mutated_recordings_raise_wire_errors_at_most_once_and_stay_readable(
    name: str, mutations: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    recording = load(name)
    body = bytearray(recording.body)
    for place, patch in mutations:
        start = place % len(body)
        body[start : start + max(1, len(patch))] = patch
    results = []
    for pieces in ([bytes(body)], cutting.at(bytes(body), cuts)):
        decoder = decoder_of(recording, name)
        summary, count, errors = run(decoder, pieces)
        assert len(errors) <= 1
        assert ("wire_error" in summary.meta) == bool(errors)
        assert encode(End("U", 0, "ok", summary=summary))  # whatever came, it can be stored
        results.append((summary, count, errors))
    assert results[0] == results[1]


@given(
    st.sampled_from(["chat", "completions", "responses", "messages", "ollama_chat", "ollama_generate", "embeddings", "other"]),
    st.sampled_from([SSE, JSON, "application/x-ndjson", ""]),
    st.sampled_from([200, 400, 500]),
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from(
            ["data: ", "{", "}", '"choices":', "[", "]", "\n\n", "event: error\n", '"error"', ":", "NaN", '"\\ud800"']
        )
    ).map(lambda parts: "".join(parts).encode()),
    cutting.cuts,
)
def test_any_bytes_give_a_summary_or_a_wire_error(
    endpoint: str, content_type: str, status: int, data: bytes, cuts: list[int]
) -> None:
    outcomes = [run(decoder_for(endpoint, content_type, status), pieces) for pieces in ([data], cutting.at(data, cuts))]
    assert outcomes[0] == outcomes[1]
    assert orjson.dumps(outcomes[0][0])


def event(payload: str) -> bytes:
    return b"data: " + payload.encode() + b"\n\n"


TEXT = event('{"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}')
BAD = event("{oops}")


def test_after_a_wire_error_a_decoder_takes_no_more_and_keeps_what_it_had() -> None:
    decoder = decoder_for("chat", SSE, 200)
    assert decoder.feed(TEXT) == 1
    with pytest.raises(WireError, match="not valid JSON"):
        decoder.feed(BAD)
    assert decoder.feed(TEXT) == 0
    assert decoder.close() == 0
    summary = decoder.summary
    assert summary.choices[0].content == "a"
    assert summary.usage.completion_tokens == 1
    assert not summary.complete
    assert summary.meta == {"wire_error": "not valid JSON at line 1, column 2"}


@pytest.mark.parametrize("late", ["feed", "close"])
def test_a_piece_with_content_before_its_fault_returns_its_count_first(late: str) -> None:
    decoder = decoder_for("chat", SSE, 200)
    assert decoder.feed(TEXT + TEXT + BAD + TEXT) == 2
    with pytest.raises(WireError):
        decoder.feed(TEXT) if late == "feed" else decoder.close()
    assert decoder.close() == 0
    assert decoder.summary.choices[0].content == "aa"


def test_a_stream_may_end_without_a_blank_line() -> None:
    decoder = decoder_for("chat", SSE, 200)
    assert decoder.feed(TEXT[:-2]) == 0
    assert decoder.close() == 1
    assert decoder.feed(TEXT) == 0
    cut = decoder_for("chat", SSE, 200)
    assert run(cut, [TEXT, TEXT[:-9]])[1:] == (1, [])
    assert cut.summary.choices[0].content == "a"


@pytest.mark.parametrize(
    ("source", "assembler", "piece"),
    [
        (SseDecoder(max_event=100), OpenAIAssembler(), event('{"choices":[], "x":"' + "y" * 200 + '"}')),
        (NdjsonDecoder(max_line=100), OllamaAssembler(), b'{"response":"' + b"y" * 200 + b'"}\n'),
    ],
)
def test_events_that_are_too_long(source: Any, assembler: Any, piece: bytes) -> None:
    decoder = StreamDecoder(source, assembler)
    with pytest.raises(WireError, match="longer than 100 bytes"):
        decoder.feed(piece)
    assert decoder.close() == 0


def test_a_stream_is_followed_up_to_a_limit() -> None:
    for pieces in ([TEXT * 3], cutting.bytewise(TEXT * 3)):
        decoder = StreamDecoder(SseDecoder(), OpenAIAssembler(), max_stream=len(TEXT) * 2 + 5)
        summary, count, errors = run(decoder, pieces)
        assert (count, errors) == (2, ["the stream is too long to follow"])
        assert summary.choices[0].content == "aa"


def test_a_body_is_collected_up_to_the_cap() -> None:
    body = b'{"choices":[{"message":{"content":"a"}}]}'
    assert run(decoder_for("chat", JSON, 200, max_body=len(body)), cutting.bytewise(body))[1:] == (1, [])
    decoder = decoder_for("chat", JSON, 200, max_body=len(body) - 1)
    assert run(decoder, cutting.bytewise(body))[1:] == (0, [f"body larger than {len(body) - 1} bytes"])
    assert isinstance(decoder, BodyDecoder)
    assert decoder._pieces == []


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        (b"", []),
        (b'{"choices":[{"mess', []),
        (b"{oops", ["not valid JSON at line 1, column 2"]),
        (b"[]", ["JSON is not an object"]),
    ],
)
def test_bodies_that_are_cut_or_broken(body: bytes, errors: list[str]) -> None:
    summary, count, raised = run(decoder_for("chat", JSON, 200), [body])
    assert (count, raised, summary.complete) == (0, errors, False)


def test_close_twice() -> None:
    for decoder in (
        decoder_for("chat", JSON, 200),
        decoder_for("chat", SSE, 200),
        decoder_for("chat", JSON, 500),
        decoder_for("other", "", 200),
    ):
        decoder.feed(b"{}")
        assert decoder.close() == decoder.close() == 0


@pytest.mark.parametrize(
    ("endpoint", "content_type", "status", "kind"),
    [
        ("chat", SSE, 200, StreamDecoder),
        ("chat", "Text/Event-Stream", 200, StreamDecoder),
        ("chat", JSON, 200, BodyDecoder),
        ("chat", "application/problem+json", 200, BodyDecoder),
        ("chat", JSON, 404, ErrorDecoder),
        ("chat", SSE, 500, StreamDecoder),
        ("models", JSON, 401, ErrorDecoder),
        ("other", "", 502, ErrorDecoder),
        ("chat", "", 200, NullDecoder),
        ("chat", "application/x-ndjson", 200, NullDecoder),
        ("ollama_chat", "application/x-ndjson", 200, StreamDecoder),
        ("ollama_generate", JSON, 200, BodyDecoder),
        ("ollama_chat", SSE, 200, NullDecoder),
        ("transcriptions", SSE, 200, StreamDecoder),
        ("transcriptions", JSON, 200, BodyDecoder),
        ("embeddings", JSON, 200, BodyDecoder),
        ("embeddings", "application/octet-stream", 200, NullDecoder),
        ("responses_by_id", JSON, 200, NullDecoder),  # the same reply once more: its tokens were counted before
        ("models", JSON, 200, NullDecoder),
        ("other", SSE, 200, Sniffer),
        ("other", JSON, 200, Sniffer),
        ("other", "text/html", 200, NullDecoder),
        ("transcriptions", "text/plain; charset=utf-8", 200, TextDecoder),
    ],
)
def test_which_decoder(endpoint: str, content_type: str, status: int, kind: type) -> None:
    assert type(decoder_for(endpoint, content_type, status)) is kind


def test_an_error_body_is_looked_at_up_to_a_limit() -> None:
    decoder = ErrorDecoder(502)
    for _ in range(4):
        decoder.feed(b"x" * decode._MAX_ERROR_BODY)
    assert sum(map(len, decoder._pieces)) == decode._MAX_ERROR_BODY
    decoder.close()
    assert decoder.summary.error_type == "http_502"
    assert decoder.summary.error_message == "x" * 2000


def test_a_megabyte_byte_by_byte_costs_one_event() -> None:
    """Linear: the JSON is parsed once, when its event is complete, however many pieces it came in."""
    parsed = []

    class Counting(OpenAIAssembler):
        def event(self, name: str, data: bytes) -> bool:
            parsed.append(len(data))
            return super().event(name, data)

    decoder = StreamDecoder(SseDecoder(), Counting())
    data = event('{"choices":[{"index":0,"delta":{"content":"' + "x" * 1_000_000 + '"}}]}')
    assert sum(decoder.feed(data[i : i + 1]) for i in range(len(data))) == 1
    assert parsed == [len(data) - 8]


def test_embeddings_as_bytes_are_told_by_a_header() -> None:
    metadata = '{"id": "embd-1", "model": "m", "data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}'
    decoder = decoder_for("embeddings", "application/octet-stream", 200, metadata=metadata)
    summary, count, errors = run(decoder, [b"\x00\xff" * 100, b"\n\n"])
    assert (summary.usage.prompt_tokens, summary.model, summary.complete, count, errors) == (3, "m", True, 0, [])
    broken = decoder_for("embeddings", "application/octet-stream", 200, metadata="no JSON")
    assert run(broken, [b"x"])[0] == Summary(complete=True)


@pytest.mark.parametrize("name", [name for name in recordings.names() if "-pooling/" in name])
def test_large_bodies_are_skimmed_to_the_same_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap.wire.plain.SKIM_FROM", 0)
    recording = load(name)
    decoder = decoder_of(recording, name)
    summary, count, errors = run(decoder, recording.chunks)
    assert errors == []
    assert understood(recording, decoder, summary, count) == EXPECTATIONS[name]
