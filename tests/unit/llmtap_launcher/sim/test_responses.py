"""`/v1/responses` against recordings of vLLM 0.33, and what the decoder makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtap.wire.decode import decoder_for
from llmtap_launcher.sim.responses import ResponsesRequest
from support import recordings
from support.asgi_sim import SimApp
from support.shape import named_shapes, shape

LONG = {"max_output_tokens": 1000}


def recorded(name: str, **changes: Any) -> tuple[recordings.Recording, dict[str, Any]]:
    found = recordings.load(f"vllm-0.33.0/{name}")
    return found, {**json.loads(found.request_body), **changes}


@pytest.mark.parametrize("name", ["responses_stream", "responses_stream_reasoning", "responses_stream_tool"])
async def test_streams(name: str) -> None:
    theirs, body = recorded(name, **LONG)
    reply = await SimApp(reasoning=True).request("POST", "/v1/responses", body)
    assert named_shapes(b"".join(reply.chunks)) == named_shapes(theirs.body)
    numbers = [json.loads(block.split(b"data: ")[1])["sequence_number"] for block in b"".join(reply.chunks).split(b"\n\n")[:-1]]
    assert numbers == list(range(len(numbers)))
    assert dict(reply.headers)["content-type"] == theirs.content_type


async def test_a_whole_response() -> None:
    theirs, body = recorded("responses_nonstream", **LONG)
    mine = (await SimApp(reasoning=True).request("POST", "/v1/responses", body)).json()
    expected = json.loads(theirs.body)
    # of a whole reply vLLM leaves the status of the reasoning open
    mine["output"][0]["status"] = expected["output"][0]["status"]
    assert shape(mine) == shape(expected)
    assert mine["id"].startswith("resp_")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["responses_stream", "responses_stream_tool"])
async def test_the_decoder_counts_what_the_server_counts(name: str, stream: bool) -> None:
    app = SimApp(reasoning=True)
    _, body = recorded(name, stream=stream, **LONG)
    reply = await app.request("POST", "/v1/responses", body)
    decoder = decoder_for("responses", dict(reply.headers)["content-type"], 200)
    for piece in reply.chunks or [reply.body]:
        decoder.feed(piece)
    decoder.close()
    usage = decoder.summary.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == app.sim.metrics.counts()
    assert decoder.summary.complete
    assert decoder.summary.choices[0].finish_reason == ("tool_calls" if "tool" in name else "stop")


async def test_a_length_is_incomplete() -> None:
    reply = (await SimApp().request("POST", "/v1/responses", {"input": "Tell me", "max_output_tokens": 4})).json()
    assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert reply["usage"]["output_tokens"] == 4


async def test_the_engines_death_cuts_the_stream() -> None:
    reply = await SimApp().request("POST", "/v1/responses", {"input": "x [[sim:fail=engine_dead=3]]", "stream": True})
    assert reply.connection.acts == ["close"]
    assert not reply.finished
    assert b"response.completed" not in b"".join(reply.chunks)


async def test_a_conversation_of_items() -> None:
    request = ResponsesRequest.model_validate(
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {"type": "reasoning", "summary": []},
                {"type": "function_call", "call_id": "1", "name": "w", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "Sun"},
            ],
            "tools": [{"type": "function", "name": "w"}, {"type": "web_search"}],
            "tool_choice": {"type": "function", "name": "w"},
        }
    )
    chat = request.chat()
    assert [(m.role, m.content) for m in chat.messages] == [
        ("system", "Be brief."),
        ("user", "Weather?"),
        ("assistant", ""),
        ("tool", "Sun"),
    ]
    assert [tool.function.name for tool in chat.tools or []] == ["w"]
    assert chat.forced_name == "w"
    app = SimApp()
    assert (await app.request("POST", "/v1/responses", {"input": "x", "model": "nope"})).status == 404
    assert (await app.request("POST", "/v1/responses", {"input": [{"role": 3}]})).status == 400
