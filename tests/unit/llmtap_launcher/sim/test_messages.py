"""`/v1/messages` against recordings of vLLM 0.33, and what the Anthropic decoder makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtap.wire.decode import decoder_for
from llmtap_launcher.sim.messages import MessagesRequest
from support import recordings
from support.asgi_sim import SimApp
from support.shape import named_shapes, shape

LONG = {"max_tokens": 1000}


def recorded(name: str, **changes: Any) -> tuple[recordings.Recording, dict[str, Any]]:
    found = recordings.load(f"vllm-0.33.0/{name}")
    return found, {**json.loads(found.request_body), **changes}


@pytest.mark.parametrize("name", ["messages_stream", "messages_stream_thinking", "messages_stream_tool"])
async def test_streams(name: str) -> None:
    theirs, body = recorded(name, **LONG)
    reply = await SimApp(reasoning=True).request("POST", "/v1/messages", body)
    assert named_shapes(b"".join(reply.chunks)) == named_shapes(theirs.body)
    assert dict(reply.headers)["content-type"] == theirs.content_type
    assert reply.finished


async def test_a_whole_message() -> None:
    theirs, body = recorded("messages_nonstream", **LONG)
    reply = await SimApp(reasoning=True).request("POST", "/v1/messages", body)
    assert shape(reply.json()) == shape(json.loads(theirs.body))
    assert dict(reply.headers)["content-type"] == theirs.content_type


async def test_counted_tokens_are_those_of_the_answer() -> None:
    theirs, body = recorded("messages_count_tokens")
    app = SimApp()
    counted = (await app.request("POST", "/v1/messages/count_tokens", body)).json()
    assert shape(counted) == shape(json.loads(theirs.body))
    answer = (await app.request("POST", "/v1/messages", {**body, "max_tokens": 9})).json()
    assert answer["usage"]["input_tokens"] == counted["input_tokens"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_decoder_counts_what_the_server_counts(stream: bool) -> None:
    app = SimApp(reasoning=True)
    _, body = recorded("messages_stream_tool", stream=stream, **LONG)
    reply = await app.request("POST", "/v1/messages", body)
    decoder = decoder_for("messages", dict(reply.headers)["content-type"], 200)
    for piece in reply.chunks or [reply.body]:
        decoder.feed(piece)
    decoder.close()
    usage, choice = decoder.summary.usage, decoder.summary.choices[0]
    assert (usage.prompt_tokens, usage.completion_tokens) == app.sim.metrics.counts()
    assert choice.finish_reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)["city"]) for call in choice.tool_calls] == [("get_weather", "Paris")]


@pytest.mark.parametrize(
    ("changes", "reason", "sequence"),
    [({"max_tokens": 5}, "max_tokens", None), ({"stop_sequences": ["the", "a"]}, "stop_sequence", True), ({}, "end_turn", None)],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_why_it_stopped(stream: bool, changes: dict[str, Any], reason: str, sequence: bool | None) -> None:
    body = {"messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 900, "stream": stream, **changes}
    reply = await SimApp().request("POST", "/v1/messages", body)
    said = json.loads(reply.chunks[-2].split(b"data: ")[1])["delta"] if stream else reply.json()
    assert said["stop_reason"] == reason
    assert bool(said.get("stop_sequence")) is bool(sequence)


async def test_the_engines_death() -> None:
    body = {"messages": [{"role": "user", "content": "x [[sim:fail=engine_dead=3]]"}], "max_tokens": 100, "stream": True}
    reply = await SimApp().request("POST", "/v1/messages", body)
    assert reply.chunks[-1].startswith(b"event: content_block_stop\n")
    theirs = recordings.load("vllm-0.33.0/engine_killed_messages")
    assert reply.chunks[-1].split(b"\n\n")[1] == theirs.body.split(b"\n\n")[-2]


async def test_refusals_are_anthropic_s() -> None:
    app = SimApp()
    unknown = await app.request("POST", "/v1/messages", {"model": "nope", "messages": [], "max_tokens": 1})
    assert (unknown.status, unknown.json()["type"], unknown.json()["error"]["type"]) == (404, "error", "NotFoundError")
    wrong = {"messages": [{"role": "user", "content": "x"}], "tools": [{"input_schema": 3}], "max_tokens": 1}
    assert (await app.request("POST", "/v1/messages", wrong)).status == 400


def test_a_conversation_in_openai_s_words() -> None:
    request = MessagesRequest.model_validate(
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "w", "input": {"city": "Rome"}}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "Sun"}]},
                        {"type": "text", "text": "And now?"},
                    ],
                },
            ],
            "max_tokens": 9,
            "tools": [{"name": "w", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "w"},
        }
    )
    chat = request.chat()
    assert [(m.role, m.content) for m in chat.messages] == [
        ("system", "Be brief."),
        ("user", "Weather?"),
        ("assistant", ""),
        ("tool", "Sun"),
        ("user", "And now?"),
    ]
    assert chat.messages[2].tool_calls == [{"function": {"name": "w", "arguments": '{"city": "Rome"}'}}]
    assert chat.forced_name == "w"
