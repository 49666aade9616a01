"""Ollama's API against recordings of Ollama, and what its decoder makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtap.wire.decode import decoder_for
from support import recordings
from support.asgi_sim import SimApp
from support.shape import line_shapes, shape


def recorded(name: str, **changes: Any) -> tuple[recordings.Recording, dict[str, Any]]:
    found = recordings.load(f"ollama/{name}")
    return found, {**json.loads(found.request_body or b"{}"), **changes}


@pytest.mark.parametrize(
    "name",
    ["api_chat_stream_default", "api_chat_think", "api_chat_tools", "api_chat_length", "api_chat_utf8", "api_generate_stream"],
)
async def test_streams(name: str) -> None:
    theirs, body = recorded(name)
    reply = await SimApp().request("POST", theirs.path, body)
    mine = line_shapes(b"".join(reply.chunks))
    # zero values are left out, and in no time at all a simulation answers: the order of members is what counts
    assert [line.partition("done:bool")[0] for line in mine] == [
        line.partition("done:bool")[0] for line in line_shapes(theirs.body)
    ]
    last, expected = json.loads(reply.chunks[-1]), json.loads(theirs.body.splitlines()[-1])
    assert [*last] == [*expected]
    assert last["done_reason"] == expected["done_reason"]
    assert dict(reply.headers)["content-type"] == theirs.content_type


@pytest.mark.parametrize("name", ["api_chat_nonstream", "api_chat_tools_nonstream", "api_generate_nonstream"])
async def test_whole_replies(name: str) -> None:
    theirs, body = recorded(name)
    reply = await SimApp().request("POST", theirs.path, body)
    assert shape(reply.json()) == shape(json.loads(theirs.body))
    assert dict(reply.headers)["content-type"] == theirs.content_type


@pytest.mark.parametrize("name", ["api_generate_load_only", "api_generate_unload"])
async def test_loading(name: str) -> None:
    theirs, body = recorded(name)
    reply = await SimApp().request("POST", theirs.path, body)
    expected = json.loads(theirs.body)
    assert {**reply.json(), "created_at": ""} == {**expected, "created_at": ""}


@pytest.mark.parametrize("name", ["err_unknown_model", "err_empty_body"])
async def test_the_same_refusal(name: str) -> None:
    theirs = recordings.load(f"ollama/{name}")
    reply = await SimApp().request("POST", theirs.path, theirs.request_body)
    assert (reply.status, reply.body) == (theirs.status, theirs.body)


async def test_other_refusals() -> None:
    app = SimApp()
    for body in (b"{x", b"[1]", {"model": "tiny", "messages": 3}, {"messages": []}, {"model": "tiny", "messages": [{"role": 1}]}):
        reply = await app.request("POST", "/api/chat", body)
        assert (reply.status, [*reply.json()]) == (400, ["error"])
    long = {"model": "tiny", "prompt": "word " * 5000}
    assert (await app.request("POST", "/api/generate", long)).status == 400


@pytest.mark.parametrize("name", ["api_tags", "api_ps", "api_version"])
async def test_lists(name: str) -> None:
    theirs = recordings.load(f"ollama/{name}")
    reply = await SimApp(models=("tiny", "other:1b")).request("GET", theirs.path)
    mine, expected = reply.json(), json.loads(theirs.body)
    if name == "api_version":
        assert [*mine] == [*expected]
        return
    assert [card["name"] for card in mine["models"]] == ["tiny:latest", "other:1b"]
    assert set(expected["models"][0]) == set(mine["models"][0])


async def test_names_with_and_without_a_tag() -> None:
    app = SimApp(models=("tiny", "other:1b"))
    for name, status in (("tiny", 200), ("tiny:latest", 200), ("other:1b", 200), ("other", 404), ("tiny:1b", 404)):
        assert (await app.request("POST", "/api/show", {"model": name})).status == status
    assert (await app.request("POST", "/api/show", {"name": "tiny"})).status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("name", ["api_chat_stream_default", "api_chat_tools", "api_generate_stream"])
async def test_the_decoder_counts_what_the_server_counts(name: str, think: bool, stream: bool) -> None:
    app = SimApp()
    theirs, body = recorded(name, stream=stream, think=think)
    reply = await app.request("POST", theirs.path, body)
    endpoint = "ollama_chat" if theirs.path == "/api/chat" else "ollama_generate"
    decoder = decoder_for(endpoint, dict(reply.headers)["content-type"], 200)
    for piece in reply.chunks or [reply.body]:
        decoder.feed(piece)
    decoder.close()
    summary = decoder.summary
    assert (summary.usage.prompt_tokens, summary.usage.completion_tokens) == app.sim.metrics.counts()
    assert (summary.complete, bool(summary.choices[0].reasoning)) == (True, think)
    if "tools" in name:
        assert [json.loads(call.arguments)["city"] for call in summary.choices[0].tool_calls] == ["Paris", "London"]


async def test_embeddings() -> None:
    app = SimApp()
    reply = (await app.request("POST", "/api/embed", {"model": "tiny", "input": ["Hello", "World"]})).json()
    assert [*reply] == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert (len(reply["embeddings"]), len(reply["embeddings"][0])) == (2, 64)
    legacy = (await app.request("POST", "/api/embeddings", {"model": "tiny", "prompt": "Hello"})).json()
    assert legacy == {"embedding": reply["embeddings"][0]}


async def test_options_and_formats() -> None:
    app = SimApp()
    short = {"model": "tiny", "prompt": "Tell me", "stream": False, "options": {"num_predict": 3}}
    assert (await app.request("POST", "/api/generate", short)).json()["eval_count"] == 3
    unlimited = {**short, "options": {"num_predict": -1}}
    assert (await app.request("POST", "/api/generate", unlimited)).json()["done_reason"] == "stop"
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    for form, key in (("json", "answer"), (schema, "city")):
        said = (await app.request("POST", "/api/generate", {**unlimited, "format": form})).json()["response"]
        assert key in json.loads(said)


async def test_the_engines_death_is_a_line() -> None:
    body = {"model": "tiny", "prompt": "x [[sim:fail=engine_dead=3]]"}
    reply = await SimApp().request("POST", "/api/generate", body)
    assert [*json.loads(reply.chunks[-1])] == ["error"]
