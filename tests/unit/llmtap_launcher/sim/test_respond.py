"""Replies of generating endpoints, streamed and whole, with each fault in their middle."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llmtap_launcher.sim.respond import TokenResponse
from support import recordings
from support.asgi_sim import FakeConnection, Reply, SimApp

DONE = b"data: [DONE]\n\n"


def content(reply: Reply) -> str:
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events() if e["choices"])


async def test_a_stream_has_the_words_of_the_whole_reply() -> None:
    app = SimApp()
    whole = (await app.chat("Hello")).json()["choices"][0]["message"]["content"]
    stream = await app.chat("Hello", stream=True)
    assert content(stream) == whole
    assert stream.chunks[-1] == DONE
    assert stream.headers == [("content-type", "text/event-stream; charset=utf-8"), ("vary", "Origin")]


async def test_every_event_is_a_chunk_of_its_own() -> None:
    reply = await SimApp().chat(stream=True)
    assert all(chunk.startswith(b"data: ") and chunk.count(b"\n\n") == 1 for chunk in reply.chunks)


async def test_headers_come_before_the_first_token() -> None:
    app = SimApp(ttft_ms=60_000)
    connection = FakeConnection()
    task = asyncio.create_task(app.request("POST", "/v1/completions", {"prompt": "x", "stream": True}, connection=connection))
    while not app.sim.engine.running:
        await asyncio.sleep(0)
    assert app.sim.log.list()[0].status == 200
    assert connection.chunks == []
    connection.lose()
    assert (await task).finished is False


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_generation(stream: bool) -> None:
    app = SimApp(tokens_per_second=1)
    connection = FakeConnection()
    body = {"prompt": "x", "stream": stream}
    task = asyncio.create_task(app.request("POST", "/v1/completions", body, connection=connection))
    while not (app.sim.log.list() and app.sim.log.list()[0].tokens):
        await asyncio.sleep(0)
    connection.lose()
    assert app.sim.engine.running == 0
    reply = await task
    assert not reply.finished
    seen = app.sim.log.list()[0]
    assert (seen.aborted, seen.finished, seen.tokens) == (True, False, 1)


async def test_the_servers_end_ends_a_stream() -> None:
    app = SimApp(ttft_ms=60_000)
    connection = FakeConnection()
    task = asyncio.create_task(app.request("POST", "/v1/completions", {"prompt": "x", "stream": True}, connection=connection))
    while not app.sim.engine.running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (connection.acts, app.sim.engine.running) == (["close"], 0)


@pytest.mark.parametrize("tokens", [0, 1, 7])
async def test_die_mid_stream(tokens: int) -> None:
    reply = await SimApp().chat("Hello", stream=True, headers={"x-sim-fail": f"die_mid_stream={tokens}"})
    assert reply.connection.acts == ["close"]
    assert not reply.finished
    assert len(reply.chunks) == (tokens + 1 if tokens else 0)  # the role chunk comes with the first token
    whole = await SimApp().chat("Hello", stream=True)
    assert content(whole).startswith(content(reply))


async def test_die_mid_stream_strikes_before_the_end_of_a_short_reply() -> None:
    reply = await SimApp().chat("Hello", stream=True, max_tokens=3, headers={"x-sim-fail": "die_mid_stream=50"})
    assert (reply.connection.acts, len(reply.chunks), reply.finished) == (["close"], 3, False)


async def test_die_in_the_middle_of_a_whole_reply() -> None:
    reply = await SimApp().chat("Hello", headers={"x-sim-fail": "die_mid_stream"})
    length = int(dict(reply.headers)["content-length"])
    assert 0 < len(reply.connection.raw) < length
    assert reply.connection.acts == ["close"]
    assert not reply.finished


async def test_engine_dead_while_streaming() -> None:
    app = SimApp()
    reply = await app.chat("Hello", stream=True, headers={"x-sim-fail": "engine_dead=3"})
    recorded = recordings.load("vllm-0.33.0/engine_killed_mid_stream")
    assert reply.chunks[-2:] == recorded.chunks[-2:]
    assert len(reply.chunks) == 1 + 3 + 2
    assert reply.finished
    assert (await app.request("GET", "/health")).status == 503
    after = await app.chat("Hello", stream=True)
    assert (after.status, after.body) == (500, recordings.load("vllm-0.33.0/engine_killed_mid_nonstream").body)


async def test_engine_dead_takes_every_request_with_it() -> None:
    app = SimApp(ttft_ms=60_000)
    others = [asyncio.create_task(app.chat("a")), asyncio.create_task(app.chat("b", stream=True))]
    while app.sim.engine.running < 2:
        await asyncio.sleep(0)
    whole = await app.chat("[[sim:ttft=0]] Hello", headers={"x-sim-fail": "engine_dead"})
    assert whole.status == 500
    first, second = [await task for task in others]
    assert first.status == 500
    assert second.chunks[-1] == DONE
    assert b"InternalServerError" in second.chunks[-2]


async def test_bad_json_in_a_stream_is_one_event_that_is_none() -> None:
    reply = await SimApp().chat("Hello", stream=True, headers={"x-sim-fail": "bad_json"})
    bad = [chunk for chunk in reply.chunks if chunk != DONE and not is_json(chunk[6:])]
    assert len(bad) == 1
    assert reply.chunks.index(bad[0]) == 6
    assert reply.chunks[-1] == DONE


async def test_bad_json_whole() -> None:
    reply = await SimApp().chat("Hello", headers={"x-sim-fail": "bad_json"})
    assert reply.finished
    assert not is_json(reply.body)
    assert len(reply.body) == int(dict(reply.headers)["content-length"])


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("stream", [True, False])
async def test_stall_keeps_the_connection_and_sends_nothing(stream: bool) -> None:
    app = SimApp()
    connection = FakeConnection()
    body = {"prompt": "x", "stream": stream}
    task = asyncio.create_task(
        app.request("POST", "/v1/completions", body, headers={"x-sim-fail": "stall"}, connection=connection)
    )
    while not (app.sim.log.list() and app.sim.log.list()[0].tokens == 5):
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert app.sim.log.list()[0].tokens == 5
    assert (app.sim.engine.running, connection.acts) == (1, [])
    connection.lose()
    assert not (await task).finished
    assert app.sim.engine.running == 0


async def test_a_stall_that_ends_goes_on_where_it_was() -> None:
    reply = await SimApp().chat("Hello", stream=True, headers={"x-sim-fail": "stall=0.01"})
    assert content(reply) == content(await SimApp().chat("Hello", stream=True))


async def test_a_stall_after_the_only_token_holds_the_end() -> None:
    app = SimApp()
    task = asyncio.create_task(app.chat("Hello", stream=True, max_tokens=1, headers={"x-sim-fail": "stall"}))
    while not (app.sim.log.list() and app.sim.log.list()[0].tokens):
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_slow_reader_is_not_written_to() -> None:
    app = SimApp()
    connection = FakeConnection()
    connection.blocked = True
    task = asyncio.create_task(app.request("POST", "/v1/completions", {"prompt": "x", "stream": True}, connection=connection))
    while not app.sim.engine.running:
        await asyncio.sleep(0)
    assert connection.chunks == []
    connection.blocked = False
    reply = await task
    assert reply.finished
    assert reply.chunks[-1] == DONE


def test_it_is_a_response_for_starlette() -> None:
    fields: dict[str, Any] = dict(TokenResponse.__dict__)
    assert "__call__" in fields
