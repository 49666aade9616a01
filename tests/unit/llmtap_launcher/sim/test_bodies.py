"""Answers compared with recordings of vLLM 0.33 in everything but their words: keys, order, nulls, events.

The recorded model thinks two newlines before each answer, so the simulation does its thinking too. Where a recording's chunks
depend on the recorded model's words (a cut in the middle of something), the request is bent until the simulated words are cut
there as well.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from llmtap_launcher.sim.bodies import FINGERPRINT, ChatWriter, CompletionWriter, Envelope, event
from llmtap_launcher.sim.requests import ChatRequest, CompletionRequest
from llmtap_launcher.sim.script import Step
from llmtap_launcher.sim.text import Tokenizer
from support import recordings
from support.asgi_sim import SimApp
from support.shape import event_json, shape, stream_shapes

LONG = {"max_tokens": 1000}
CUT_IN_THE_ANSWER = {"max_tokens": 100, "messages": [{"role": "user", "content": "[[sim:tokens=300]] Tell me a long story"}]}
CHANGES: dict[str, dict[str, Any]] = {
    "chat_nonstream_token_ids": LONG,
    "chat_nonstream_xrequestid": LONG,
    "chat_stream": LONG,
    "chat_stream_continuous_usage": LONG,
    "chat_stream_length": CUT_IN_THE_ANSWER,
    "chat_stream_logprobs": LONG,
    "chat_stream_n2": CUT_IN_THE_ANSWER,
    "chat_stream_reasoning": LONG,
    "chat_stream_stopword": {**LONG, "stop": ["the"]},
    "chat_stream_token_ids": LONG,
    "chat_stream_usage": LONG,
    "chat_stream_utf8": LONG,
}
STREAMS = [
    "chat_stream", "chat_stream_continuous_usage", "chat_stream_length", "chat_stream_logprobs", "chat_stream_reasoning",
    "chat_stream_stopword", "chat_stream_token_ids", "chat_stream_tool_auto", "chat_stream_tool_parallel", "chat_stream_usage",
    "chat_stream_utf8", "completions_stream_token_ids",
]  # fmt: skip
WHOLE = [
    "chat_nonstream", "chat_nonstream_reasoning", "chat_nonstream_token_ids", "chat_nonstream_tool_auto",
    "chat_nonstream_xrequestid", "completions_echo_logprobs",
]  # fmt: skip


def replay(name: str) -> tuple[recordings.Recording, str, dict[str, Any]]:
    recorded = recordings.load(f"vllm-0.33.0/{name}")
    return recorded, recorded.path, {**json.loads(recorded.request_body), **CHANGES.get(name, {})}


def apart(events: list[bytes]) -> list[bytes]:
    """Two tokens that the recorded server put into one delta, as the two deltas they would have been on a faster machine."""
    out: list[bytes] = []
    for piece in events:
        data = event_json(piece)
        delta = data["choices"][0].get("delta", {}) if isinstance(data, dict) and data["choices"] else {}
        if delta.get("content") and delta.get("reasoning"):
            for key in ("reasoning", "content"):
                assert isinstance(data, dict)
                data["choices"][0]["delta"] = {key: delta[key]}
                out.append(event(data))
        else:
            out.append(piece)
    return out


@pytest.mark.parametrize("name", STREAMS)
async def test_streams(name: str) -> None:
    recorded, path, body = replay(name)
    reply = await SimApp(reasoning=True).request("POST", path, body)
    assert stream_shapes(reply.chunks) == stream_shapes(apart(recorded.chunks))
    assert reply.finished


async def test_a_completion_stream_that_ends_by_itself() -> None:
    """The recorded model ended by itself within the limit; the simulated one needs more room for that."""
    recorded, path, body = replay("completions_stream_usage")
    reply = await SimApp().request("POST", path, {**body, "max_tokens": 500})
    assert stream_shapes(reply.chunks) == stream_shapes(recorded.chunks)


@pytest.mark.parametrize("name", ["chat_stream_n2", "completions_stream_multi_prompt"])
async def test_several_choices(name: str) -> None:
    """How choices interleave is a matter of timing, so the order is that in which each shape is first seen."""
    recorded, path, body = replay(name)
    reply = await SimApp(reasoning=True).request("POST", path, body)
    assert [*dict.fromkeys(stream_shapes(reply.chunks))] == [*dict.fromkeys(stream_shapes(recorded.chunks))]


@pytest.mark.parametrize("name", ["chat_stream_tool_named", "chat_stream_tool_required"])
async def test_forced_tools_up_to_the_cut(name: str) -> None:
    """The recorded model never closed its arguments; up to there the two are the same."""
    recorded, path, body = replay(name)
    reply = await SimApp(reasoning=True).request("POST", path, body)
    theirs = stream_shapes(recorded.chunks)
    assert stream_shapes(reply.chunks)[: len(theirs) - 2] == theirs[:-2]


@pytest.mark.parametrize("name", WHOLE)
async def test_whole_replies(name: str) -> None:
    recorded, path, body = replay(name)
    reply = await SimApp(reasoning=True).request("POST", path, body)
    assert shape(reply.json()) == shape(json.loads(recorded.body))


async def test_a_completion_that_ends_by_itself() -> None:
    recorded, path, body = replay("completions_nonstream")
    reply = await SimApp().request("POST", path, {**body, "max_tokens": 500})
    assert shape(reply.json()) == shape(json.loads(recorded.body))
    assert reply.json()["choices"][0]["finish_reason"] == "stop"


def chat_writer(**fields: Any) -> ChatWriter:
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **fields})
    envelope = Envelope("chatcmpl-1", 1, "tiny")
    return ChatWriter(request, envelope, Tokenizer(), [1, 2, 3], reasoning=False, forced_name=False)


def test_the_engines_death_is_told_as_recorded() -> None:
    chat = recordings.load("vllm-0.33.0/engine_killed_mid_stream").chunks[-2]
    completions = recordings.load("vllm-0.33.0/engine_killed_completions").chunks[-2]
    assert chat_writer().failure() == chat
    request = CompletionRequest(prompt="x")
    assert CompletionWriter(request, Envelope("cmpl-1", 1, "tiny"), Tokenizer(), [("x", [1])]).failure() == completions


def test_a_server_without_reasoning_parser_tells_no_reasoning_tokens() -> None:
    writer = chat_writer(stream=True, stream_options={"include_usage": True})
    writer.step(0, Step(5, "content", "a"))
    writer.step(0, Step(2, "control", finish="stop"))
    chunk = event_json(writer.closing()[0])
    assert isinstance(chunk, dict)
    assert chunk["usage"] == {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2}
    whole = orjson.loads(chat_writer().whole([[Step(2, "control", finish="stop")]]))
    assert whole["usage"]["completion_tokens_details"] is None
    assert whole["choices"][0]["message"]["content"] is None


def test_the_fingerprint_is_on_the_finish_chunk_or_on_the_usage_chunk() -> None:
    end = Step(2, "control", finish="stop")
    plain, counted = chat_writer(stream=True), chat_writer(stream=True, stream_options={"include_usage": True})
    assert FINGERPRINT.encode() in (plain.step(0, end) or b"")
    assert FINGERPRINT.encode() not in (counted.step(0, end) or b"")
    assert FINGERPRINT.encode() in counted.closing()[0]
    assert plain.closing() == []


def test_control_tokens_make_no_event_unless_ids_are_wanted() -> None:
    think = Step(3, "control")
    assert chat_writer().step(0, think) is None
    chunk = event_json(chat_writer(return_token_ids=True).step(0, think) or b"")
    assert isinstance(chunk, dict)
    assert (chunk["choices"][0]["delta"], chunk["choices"][0]["token_ids"]) == ({}, [3])


def test_a_finished_call_ends_with_tool_calls_and_a_cut_one_with_length() -> None:
    def finish(reason: str) -> str:
        writer = chat_writer()
        writer.step(0, Step(9, "tool_name", "f"))
        chunk = event_json(writer.step(0, Step(2, "control", finish=reason)) or b"")
        assert isinstance(chunk, dict)
        return str(chunk["choices"][0]["finish_reason"])

    assert (finish("stop"), finish("length")) == ("tool_calls", "length")
