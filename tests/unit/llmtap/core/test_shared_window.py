"""The window in Redis does what the one in memory does; for as many workers as there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from llmtap.core import shared_window
from llmtap.core.ids import new_ulid
from llmtap.core.redis import SharedRedis
from support.redis_server import AVAILABLE, RedisServer, running_redis

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="redis-server is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
async def workers(server: RedisServer) -> AsyncIterator[list[SharedRedis]]:
    three = [SharedRedis(server.url) for _ in range(3)]
    await three[0].command("FLUSHALL")
    yield three
    for redis in three:
        redis.close()
        await asyncio.sleep(0)  # the transport closes with the next turn


async def test_exact_over_three_workers(workers: list[SharedRedis]) -> None:
    async def one(n: int) -> bool:
        return (await shared_window.take(workers[n % 3], "k", 60, 100, 1, new_ulid()))[0]

    assert sum(await asyncio.gather(*(one(n) for n in range(600)))) == 100


async def test_what_is_told(workers: list[SharedRedis]) -> None:
    redis = workers[0]
    allowed, remaining, reset, retry = await shared_window.take(redis, "k", 60, 10, 4, "a")
    assert (allowed, remaining, reset, retry) == (True, 6, 60, 0)
    assert (await shared_window.take(redis, "k", 60, 10, 6, "b"))[:2] == (True, 0)
    allowed, remaining, reset, retry = await shared_window.take(redis, "k", 60, 10, 1, "c")
    assert (allowed, remaining) == (False, 0) and 59 < retry <= reset <= 60
    assert (await shared_window.take(redis, "other", 60, 10, 1, "d"))[0]


async def test_corrections(workers: list[SharedRedis]) -> None:
    redis, other = workers[:2]
    await shared_window.take(redis, "k", 60, 100, 80, "a")
    assert not (await shared_window.take(other, "k", 60, 100, 30, "b"))[0]
    await shared_window.settle(other, "k", "a", 10)
    assert (await shared_window.take(redis, "k", 60, 100, 30, "c"))[:2] == (True, 60)
    await shared_window.settle(redis, "k", "a", 170)
    assert (await shared_window.take(redis, "k", 60, 100, 1, "d"))[:2] == (False, 0)
    await shared_window.settle(redis, "k", "never", 5)


async def test_what_is_old_is_forgotten(workers: list[SharedRedis]) -> None:
    redis = workers[0]
    for n in range(5):
        assert (await shared_window.take(redis, "k", 0.05, 5, 1, str(n)))[0]
    refused = await shared_window.take(redis, "k", 0.05, 5, 1, "x")
    while not refused[0]:  # as long as told, no longer
        assert refused[3] <= 0.05
        refused = await shared_window.take(redis, "k", 0.05, 5, 1, "y")
    kept = await redis.command("HKEYS", "llmtap:window:{k}:amounts")
    assert b"0" not in kept and await redis.command("PTTL", "llmtap:window:{k}:amounts") > 0


async def test_more_than_the_limit_waits_for_an_empty_window(workers: list[SharedRedis]) -> None:
    assert (await shared_window.take(workers[0], "k", 60, 10, 50, "a"))[:2] == (True, 0)
    assert not (await shared_window.take(workers[0], "k", 60, 10, 1, "b"))[0]


async def test_a_redis_clock_that_is_set_back_frees_nothing(workers: list[SharedRedis]) -> None:
    redis = workers[0]
    assert (await shared_window.take(redis, "k", 60, 1, 1, "a"))[0]
    ahead = int((await redis.command("TIME"))[0]) * 1_000_000 + 30_000_000  # the clock was half a minute ahead till now
    await redis.command("HSET", "llmtap:window:{k}:amounts", "last", ahead)
    await redis.command("ZADD", "llmtap:window:{k}:times", ahead, "a")
    allowed, _, _, retry = await shared_window.take(redis, "k", 60, 1, 1, "b")
    assert not allowed and 59 < retry <= 60
