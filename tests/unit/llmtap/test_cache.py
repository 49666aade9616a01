"""The cache's steps: what is looked up, given, kept; in both forms; in memory and in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.cache import Cache, CacheFill, Kept, Lookup
from llmtap.core.config import Config
from llmtap.core.endpoints import endpoint_of
from llmtap.core.record import Choice, Summary, Usage
from llmtap.core.redis import SharedRedis
from llmtap.exchange import Exchange
from llmtap.opening import read_own_headers
from llmtap.policy.keys import Client
from llmtap.policy.route import Route
from llmtap.wire.request import parse
from support.gateway import free_port
from support.redis_server import AVAILABLE, running_redis

BODY = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
REPLY = orjson.dumps(
    {
        "id": "i",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
)
SUMMARY = Summary("i", "m", [Choice(0, content="hello", finish_reason="stop")], Usage(1, 2, source="upstream"), complete=True)


class Desk:
    """A cache, its fill, and requests that pass both."""

    def __init__(self, redis: SharedRedis | None = None, **section: Any) -> None:
        self.lookups: list[Lookup] = []
        self.now = 0.0
        config = Config.model_validate({"cache": {"enabled": True, **section}}).cache
        self.cache = Cache(config, redis, self.lookups.append, lambda: self.now)
        self.fill = CacheFill(self.cache, True, lambda: self.now)

    def arrive(
        self, body: dict[str, Any] | None = None, path: str = "/v1/chat/completions", key: str | None = None, **headers: str
    ) -> tuple[http.HTTPFlow, Exchange]:
        raw = orjson.dumps(BODY if body is None else body)
        flow = tflow.tflow()
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        flow.request = http.Request.make("POST", f"http://gw{path}", raw, fields)
        endpoint = endpoint_of(path)
        assert endpoint is not None
        ex = Exchange("POST", path, endpoint, "openai", "")
        ex.parsed, ex.lane = parse(endpoint.name, raw), True
        ex.client = Client(key) if key is not None else None
        ex.route = Route("any", ex.model)
        read_own_headers(flow.request, ex)
        return flow, ex

    def ask(self, *args: Any, **kwargs: Any) -> tuple[http.HTTPFlow, Exchange]:
        flow, ex = self.arrive(*args, **kwargs)
        assert self.cache.on_request(flow, ex) is None
        return flow, ex

    def reply(
        self, flow: http.HTTPFlow, ex: Exchange, body: bytes | list[bytes] = REPLY, summary: Summary = SUMMARY, **more: Any
    ) -> None:
        """The backend's reply: whole, or the pieces of a stream."""
        streamed = isinstance(body, list)
        ex.content_type = "text/event-stream" if streamed else "application/json"
        flow.response = http.Response.make(200, b"" if streamed else body, {"content-type": ex.content_type})
        if streamed:
            flow.response.stream = lambda data: data
        ex.status = flow.response.status_code = more.pop("status", 200)
        self.fill.on_responseheaders(flow, ex)
        if isinstance(body, list):
            assert callable(flow.response.stream)
            for piece in [*body, b""]:
                assert flow.response.stream(piece) == piece
                self.now += 0.02
        ex.summary, ex.outcome = summary, more.pop("outcome", "ok")
        for name, value in more.items():
            flow.response.headers[name.replace("_", "-")] = value
        self.fill.on_finish(flow, ex)


def hit(flow: http.HTTPFlow, ex: Exchange) -> bytes:
    assert ex.cache == "hit" and flow.response is not None and flow.response.status_code == 200
    return flow.response.content or b""


def test_the_second_time_nobody_is_asked() -> None:
    desk = Desk()
    flow, ex = desk.ask()
    assert ex.cache == "miss" and flow.response is None and ex.route is not None
    desk.reply(flow, ex)
    flow, ex = desk.ask()
    assert hit(flow, ex) == REPLY and ex.summary == SUMMARY and ex.route is None
    assert flow.response is not None and flow.response.headers["content-type"] == "application/json"
    assert desk.lookups == ["miss", "hit"] and len(desk.cache) == 1
    desk.now = 3601
    assert desk.ask()[1].cache == "miss"


STREAM = [
    b'data: {"id":"i","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"hel"}}]}\n\n',
    b'data: {"id":"i","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"lo"}}]}\n\n',
    b'data: {"id":"i","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"id":"i","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
]
ASKING = {"stream": True, "stream_options": {"include_usage": True}}


def test_a_stream_kept_serves_every_form() -> None:
    desk = Desk()
    desk.reply(*desk.ask(BODY | {"stream": True}), body=STREAM)
    assert hit(*desk.ask(BODY | ASKING)) == b"".join(STREAM)
    bare = hit(*desk.ask(BODY | {"stream": True}))
    assert b'"usage"' not in bare and bare.endswith(STREAM[-1]) and b"lo" in bare
    whole = orjson.loads(hit(*desk.ask()))
    assert whole["choices"][0]["message"]["content"] == "hello" and whole["usage"]["completion_tokens"] == 2
    assert whole["object"] == "chat.completion"


def test_a_whole_reply_kept_serves_every_form() -> None:
    desk = Desk()
    desk.reply(*desk.ask())
    flow, ex = desk.ask(BODY | ASKING)
    events = hit(flow, ex)
    assert flow.response is not None and flow.response.headers["content-type"].startswith("text/event-stream")
    assert b'"hello"' in events and b'"usage":{"prompt_tokens":1' in events and events.endswith(b"data: [DONE]\n\n")
    assert b'"usage"' not in hit(*desk.ask(BODY | {"stream": True}))


def test_what_cannot_be_said_in_the_other_form_is_asked_for() -> None:
    desk = Desk()
    odd = orjson.dumps(orjson.loads(REPLY) | {"prompt_logprobs": [1]})
    desk.reply(*desk.ask(), body=odd)
    assert hit(*desk.ask()) == odd
    assert desk.ask(BODY | {"stream": True})[1].cache == "miss"
    claude = {"model": "m", "temperature": 0, "max_tokens": 1, "messages": []}
    desk.reply(*desk.ask(claude, "/v1/messages"))
    assert desk.ask(claude, "/v1/messages")[1].cache == "hit"
    assert desk.ask(claude | {"stream": True}, "/v1/messages")[1].cache == "miss"


def test_nobody_gets_another_keys_answer_unless_all_share() -> None:
    desk = Desk()
    desk.reply(*desk.ask(key="a"))
    assert desk.ask(key="b")[1].cache == "miss" and desk.ask()[1].cache == "miss" and desk.ask(key="a")[1].cache == "hit"
    shared = Desk(scope="all")
    shared.reply(*shared.ask(key="a"))
    assert shared.ask(key="b")[1].cache == "hit"


def test_an_alias_is_the_model_it_stands_for_and_a_fallback_is_not() -> None:
    desk = Desk()
    desk.cache.aliases = {"gpt": "m"}
    flow, ex = desk.ask()
    assert ex.route is not None
    ex.route.answered_as = "m"
    desk.reply(flow, ex)
    assert desk.ask(BODY | {"model": "gpt"})[1].cache == "hit"
    flow, ex = desk.ask(BODY | {"model": "big"})
    assert ex.route is not None
    ex.route.answered_as = "small"
    desk.reply(flow, ex)
    assert desk.ask(BODY | {"model": "big"})[1].cache == "miss"


def test_what_is_passed_by() -> None:
    desk = Desk()
    sampled = {"model": "m", "messages": []}
    for body, path in ((sampled, "/v1/chat/completions"), ({"model": "m", "input": "x"}, "/v1/responses")):
        flow, ex = desk.ask(body, path)
        assert ex.cache == "bypass" and ex.cache_key is None
        desk.reply(flow, ex)
    assert desk.lookups == ["bypass", "bypass"] and len(desk.cache) == 0
    everything = Desk(only_deterministic=False)
    everything.reply(*everything.ask(sampled))
    assert everything.ask(sampled)[1].cache == "hit"
    vectors = {"model": "m", "input": "x"}
    desk.reply(*desk.ask(vectors, "/v1/embeddings"))
    assert desk.ask(vectors, "/v1/embeddings")[1].cache == "hit"


def test_a_client_may_insist() -> None:
    desk = Desk()
    desk.reply(*desk.ask())
    fresh = REPLY.replace(b"hello", b"fresh")
    flow, ex = desk.ask(x_llmtap_cache="no-cache")
    assert ex.cache == "bypass"
    desk.reply(flow, ex, fresh)
    assert hit(*desk.ask()) == fresh, "it is kept all the same"
    flow, ex = desk.ask(x_llmtap_cache="No-Store")
    desk.reply(flow, ex, REPLY)
    assert hit(*desk.ask()) == fresh


@pytest.mark.parametrize(
    "reply",
    [
        {"outcome": "client_abort"},
        {"outcome": "upstream_error"},
        {"status": 400},
        {"summary": Summary(choices=[Choice(0, finish_reason="stop")])},
        {"summary": Summary(choices=[Choice(0, finish_reason="abort")], complete=True)},
        {"summary": Summary(choices=[Choice(0, finish_reason="stop")], complete=True, error_type="x")},
        {"content_encoding": "gzip"},
        {"body": b""},
        {"body": REPLY + b" " * 90_000},
    ],
)
def test_what_is_not_kept(reply: dict[str, Any]) -> None:
    desk = Desk(max_mb=1)
    desk.reply(*desk.ask(), **reply)
    assert len(desk.cache) == 0


def test_the_pace_it_came_at() -> None:
    kept = Kept(lambda data: data, iter((1.0, 1.02, 1.07)).__next__)
    for piece in (b"a", b"bcd", b"ef", b""):
        kept(piece)
    assert kept.timed() == ((0, 1), (20, 3), (50, 2))
    assert Kept(lambda data: data, None).timed() == ()


async def test_given_again_at_that_pace() -> None:
    desk = Desk(replay="original")
    desk.reply(*desk.ask(BODY | {"stream": True}), body=STREAM)
    flow, ex = desk.ask(BODY | {"stream": True})
    assert ex.cache == "hit" and ex.plan is not None and ex.plan.body is not None and flow.response is not None
    assert "content-length" not in flow.response.headers
    pieces = [piece async for piece in ex.plan.body]
    assert len(pieces) > 3 and b'"usage"' not in b"".join(pieces) and b"".join(pieces).endswith(STREAM[-1])
    instant = Desk()
    instant.reply(*instant.ask(BODY | {"stream": True}), body=STREAM)
    assert hit(*instant.ask(BODY | {"stream": True})) == b"".join(pieces)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[SharedRedis]:
    if not AVAILABLE:
        pytest.skip("redis-server is not installed")
    with running_redis(tmp_path) as server:
        shared = SharedRedis(server.url)
        yield shared
        shared.close()
        await asyncio.sleep(0)


async def test_two_workers_share_their_answers(redis: SharedRedis) -> None:
    one, two = Desk(redis), Desk(redis, ttl_s=0.05)
    flow, ex = one.arrive()
    await one.cache.on_request(flow, ex)  # type: ignore[misc]
    one.reply(flow, ex)
    await asyncio.gather(*one.cache._storing)
    flow, ex = two.arrive(BODY | {"stream": True})
    await two.cache.on_request(flow, ex)  # type: ignore[misc]
    assert b'"hello"' in hit(flow, ex) and ex.summary == SUMMARY and (one.lookups, two.lookups) == (["miss"], ["hit"])
    other = BODY | {"seed": 1}
    flow, ex = two.arrive(other)
    await two.cache.on_request(flow, ex)  # type: ignore[misc]
    two.reply(flow, ex)
    await asyncio.gather(*two.cache._storing)
    while await redis.command("EXISTS", "llmtap:cache:" + ex.cache_key.hex()):  # type: ignore[union-attr]
        await asyncio.sleep(0)
    flow, ex = one.arrive(other)
    await one.cache.on_request(flow, ex)  # type: ignore[misc]
    assert ex.cache == "miss", "it is too old"


async def test_without_redis_everything_is_a_miss() -> None:
    pytest.importorskip("hiredis")
    desk = Desk(SharedRedis(f"redis://127.0.0.1:{free_port()}"))
    flow, ex = desk.arrive()
    await desk.cache.on_request(flow, ex)  # type: ignore[misc]
    assert ex.cache == "miss" and flow.response is None and desk.lookups == ["error"]
    desk.reply(flow, ex)
    await asyncio.gather(*desk.cache._storing)
    assert desk.lookups == ["error", "error"]
