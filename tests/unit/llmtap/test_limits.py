"""Limits: who is counted where, what is reserved and settled, what clients are told, Redis and its absence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.config import Config
from llmtap.core.endpoints import endpoint_of
from llmtap.core.errors import TooMany
from llmtap.core.record import Summary, Usage
from llmtap.core.redis import SharedRedis
from llmtap.exchange import Exchange
from llmtap.limits import Limits, LimitsUnavailable, actual_tokens
from llmtap.policy.keys import Client
from llmtap.wire.request import parse
from support.gateway import free_port
from support.redis_server import AVAILABLE, running_redis

BODY = b'{"model":"m","max_tokens":90,"messages":[]}'  # 10 prompt tokens by the estimate


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock | None = None, redis: SharedRedis | None = None, failed: Any = None, **section: Any) -> Limits:
    config = Config.model_validate({"rate_limit": {"enabled": True, **section}}).rate_limit
    return Limits(config, redis, failed or (lambda: None), clock or Clock(), lambda: 5000.0)


def exchange(client: Client | None = None, body: bytes = BODY, ip: str = "1.2.3.4") -> Exchange:
    path = "/v1/chat/completions"
    ex = Exchange("POST", path, endpoint_of(path), "openai", ip)  # type: ignore[arg-type]
    ex.client, ex.body, ex.parsed = client, body, parse("chat", body)
    return ex


def flow() -> http.HTTPFlow:
    return tflow.tflow()


def told(ex: Exchange) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in ex.limit_headers}


def finish(gate: Limits, ex: Exchange, prompt: int | None, completion: int | None) -> None:
    ex.forwarded = 1.0
    ex.summary = Summary(usage=Usage(prompt, completion))
    gate.on_finish(flow(), ex)


def test_requests_of_a_key_and_what_it_is_told() -> None:
    clock = Clock()
    gate = limits(clock, default_limit=2, window_seconds=60)
    for remaining in ("1", "0"):
        ex = exchange(Client("a"))
        assert gate.on_requestheaders(flow(), ex) is None
        assert told(ex)["x-ratelimit-remaining"] == told(ex)["x-ratelimit-remaining-requests"] == remaining
        clock.now += 10
    ex = exchange(Client("a"))
    with pytest.raises(TooMany) as caught:
        gate.on_requestheaders(flow(), ex)
    assert (caught.value.code, caught.value.retry_after_s) == ("rate_limit_exceeded", 40)
    assert told(ex) == {
        "x-ratelimit-limit": "2",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "5050",
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "50s",
    }
    gate.on_requestheaders(flow(), exchange(Client("b")))
    clock.now += 40
    gate.on_requestheaders(flow(), exchange(Client("a")))


def test_a_keys_own_limit_and_addresses_where_there_are_no_keys() -> None:
    gate = limits(default_limit=1)
    for _ in range(3):
        gate.on_requestheaders(flow(), exchange(Client("a", rate_limit=3)))
    with pytest.raises(TooMany):
        gate.on_requestheaders(flow(), exchange(Client("a", rate_limit=3)))
    gate.on_requestheaders(flow(), exchange(ip="1.1.1.1"))
    gate.on_requestheaders(flow(), exchange(ip="2.2.2.2"))
    with pytest.raises(TooMany):
        gate.on_requestheaders(flow(), exchange(ip="1.1.1.1"))


def test_tokens_are_reserved_and_then_counted_as_they_were() -> None:
    gate = limits(tokens_per_minute=250)
    first, second, third = (exchange(Client("a")) for _ in range(3))
    gate.on_request(flow(), first)
    assert told(first)["x-ratelimit-remaining-tokens"] == "150" and told(first)["x-ratelimit-limit-tokens"] == "250"
    gate.on_request(flow(), second)
    with pytest.raises(TooMany, match="250 tokens in 60 s"):
        gate.on_request(flow(), third)
    finish(gate, first, 12, 8)
    gate.on_request(flow(), third)
    assert told(third)["x-ratelimit-remaining-tokens"] == "30"
    finish(gate, second, 200, 200)
    with pytest.raises(TooMany):
        gate.on_request(flow(), exchange(Client("a"), b'{"model":"m","max_tokens":1}'))
    gate.on_request(flow(), exchange(Client("b")))


def test_a_keys_own_tokens_and_those_of_a_model() -> None:
    gate = limits(tokens_per_minute=1000, models=[{"model": "m", "rate_limit": 2, "tokens_per_minute": 150}])
    gate.on_request(flow(), exchange(Client("a", tokens_per_minute=100)))
    with pytest.raises(TooMany, match="100 tokens"):
        gate.on_request(flow(), exchange(Client("a", tokens_per_minute=100)))
    gate.on_request(flow(), exchange(Client("b")))
    with pytest.raises(TooMany, match="150 tokens"):
        gate.on_request(flow(), exchange(Client("b")))
    other = b'{"model":"n","max_tokens":90,"messages":[]}'
    gate.on_request(flow(), exchange(Client("b"), other))
    with pytest.raises(TooMany, match="2 requests"):
        gate.on_request(flow(), exchange(Client("b")))


def test_what_a_refused_request_had_reserved_is_given_back() -> None:
    gate = limits(tokens_per_minute=150, models=[{"model": "m", "tokens_per_minute": 50}])
    first, second = exchange(Client("a"), b'{"model":"m","max_tokens":40}'), exchange(Client("a"))
    gate.on_request(flow(), first)
    with pytest.raises(TooMany, match="50 tokens"):
        gate.on_request(flow(), second)
    gate.on_finish(flow(), second)
    gate.on_request(flow(), exchange(Client("a"), b'{"model":"n","max_tokens":90}'))


@pytest.mark.parametrize(
    ("forwarded", "cache", "usage", "status", "cost"),
    [
        (None, "bypass", None, 503, 0),
        (1.0, "hit", Usage(10, 20), 200, 0),
        (1.0, "shared", Usage(10, 20), 200, 0),
        (1.0, "miss", Usage(10, 20), 200, 30),
        (1.0, "bypass", Usage(None, 5), 499, 15),
        (1.0, "bypass", None, 400, 0),
        (1.0, "bypass", None, 499, None),
        (1.0, "bypass", None, 502, None),
        (1.0, "bypass", Usage(7, None), 200, 7),
    ],
)
def test_what_it_cost(forwarded: float | None, cache: Any, usage: Usage | None, status: int, cost: int | None) -> None:
    ex = exchange()
    ex.forwarded, ex.cache, ex.status = forwarded, cache, status
    ex.summary = Summary(usage=usage) if usage is not None else None
    assert actual_tokens(ex) == cost


def test_nobody_has_counted_the_estimate_stays() -> None:
    gate = limits(tokens_per_minute=150)
    ex = exchange(Client("a"))
    gate.on_request(flow(), ex)
    ex.forwarded, ex.status = 1.0, 502
    gate.on_finish(flow(), ex)
    with pytest.raises(TooMany):
        gate.on_request(flow(), exchange(Client("a")))


def test_other_limits_at_once() -> None:
    gate = limits(default_limit=1)
    gate.on_requestheaders(flow(), exchange(Client("a")))
    gate.reload(Config.model_validate({"rate_limit": {"enabled": True, "default_limit": 2}}).rate_limit)
    gate.on_requestheaders(flow(), exchange(Client("a")))
    with pytest.raises(TooMany):
        gate.on_requestheaders(flow(), exchange(Client("a")))


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[SharedRedis]:
    if not AVAILABLE:
        pytest.skip("redis-server is not installed")
    with running_redis(tmp_path) as server:
        shared = SharedRedis(server.url)
        yield shared
        shared.close()
        await asyncio.sleep(0)  # the transport closes with the next turn


async def test_two_workers_share_their_counts(redis: SharedRedis) -> None:
    config = {"default_limit": 3, "tokens_per_minute": 250, "models": [{"model": "m", "rate_limit": 5}]}
    one, two = limits(redis=redis, **config), limits(redis=redis, **config)
    for gate in (one, two, one):
        ex = exchange(Client("a"))
        await gate.on_requestheaders(flow(), ex)  # type: ignore[misc]
    assert told(ex)["x-ratelimit-remaining"] == "0"
    with pytest.raises(TooMany):
        await two.on_requestheaders(flow(), exchange(Client("a")))  # type: ignore[misc]
    first, second = exchange(Client("a")), exchange(Client("a"))
    await one.on_request(flow(), first)  # type: ignore[misc]
    await two.on_request(flow(), second)  # type: ignore[misc]
    assert told(second)["x-ratelimit-remaining-tokens"] == "50"
    with pytest.raises(TooMany):
        await one.on_request(flow(), exchange(Client("a")))  # type: ignore[misc]
    finish(two, second, 5, 5)
    await asyncio.gather(*two._settling)
    third = exchange(Client("a"))
    await one.on_request(flow(), third)  # type: ignore[misc]
    assert told(third)["x-ratelimit-remaining-tokens"] == "40"


@pytest.mark.parametrize("policy", ["allow", "deny"])
async def test_without_redis_it_is_as_configured_and_counted(policy: str) -> None:
    pytest.importorskip("hiredis")
    failures: list[int] = []
    shared = SharedRedis(f"redis://127.0.0.1:{free_port()}/0")
    gate = limits(
        redis=shared, failed=lambda: failures.append(1), default_limit=1, tokens_per_minute=100, on_storage_error=policy
    )
    for ex in (exchange(Client("a")), exchange(Client("a"))):
        if policy == "allow":
            await gate.on_requestheaders(flow(), ex)  # type: ignore[misc]
            await gate.on_request(flow(), ex)  # type: ignore[misc]
            assert ex.limit_headers == () and not ex.reserved
        else:
            with pytest.raises(LimitsUnavailable) as caught:
                await gate.on_requestheaders(flow(), ex)  # type: ignore[misc]
            assert (caught.value.status, caught.value.code) == (503, "rate_limit_unavailable")
    assert len(failures) == (4 if policy == "allow" else 2)
    shared.close()
    await asyncio.sleep(0)  # the transport closes with the next turn
