"""Redis: results, and every failure as one error, in time."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llmtap.core.errors import ConfigError
from llmtap.core.redis import PAUSE_S, Script, SharedRedis, StorageError
from support.gateway import free_port
from support.redis_server import AVAILABLE, RedisServer, running_redis

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="redis-server is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[SharedRedis]:
    shared = SharedRedis(server.url)
    yield shared
    shared.close()
    await asyncio.sleep(0)  # the transport closes with the next turn


async def test_commands_and_scripts(redis: SharedRedis) -> None:
    await redis.command("SET", "a", b"\x00\xff")
    assert await redis.command("GET", "a") == b"\x00\xff"
    script = Script("return {KEYS[1], tonumber(ARGV[1]) + 1}")
    for _ in range(2):  # unknown to the server, then known
        assert await redis.run(script, ["k"], [41]) == [b"k", 42]
    await redis.command("SCRIPT", "FLUSH")
    assert await redis.run(script, ["k"], [1]) == [b"k", 2]


async def test_many_at_once(redis: SharedRedis) -> None:
    assert await asyncio.gather(*(redis.command("INCR", "n") for _ in range(500)))
    assert await redis.command("GET", "n") == b"500"


async def test_a_script_that_is_wrong(redis: SharedRedis) -> None:
    with pytest.raises(StorageError):
        await redis.run(Script("return nonsense()"), [], [])


async def test_nobody_there_and_then_somebody(tmp_path: Path) -> None:
    port, now = free_port(), [0.0]
    shared = SharedRedis(f"redis://:secret-password@127.0.0.1:{port}/0", lambda: now[0])
    with pytest.raises(StorageError) as caught:
        await shared.command("PING")
    assert "secret-password" not in str(caught.value)
    with running_redis(tmp_path, port) as server:
        del server
        with pytest.raises(StorageError, match="a moment ago"):
            await shared.command("PING")
    shared.close()
    await asyncio.sleep(0)  # the transport closes with the next turn


async def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    port, now = free_port(), [0.0]
    shared = SharedRedis(f"redis://127.0.0.1:{port}/0", lambda: now[0])
    with running_redis(tmp_path, port) as server:
        assert await shared.command("PING")
        server.kill()
        with pytest.raises(StorageError):
            await shared.command("PING")
    with running_redis(tmp_path, port):
        now[0] += PAUSE_S
        assert await shared.command("PING")
    shared.close()
    await asyncio.sleep(0)  # the transport closes with the next turn


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        over.set()

    over = asyncio.Event()
    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    shared = SharedRedis(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0", timeout_s=0.05)
    with pytest.raises(StorageError):
        await asyncio.wait_for(shared.command("PING"), 5)
    shared.close()
    await asyncio.sleep(0)  # the transport closes with the next turn
    await asyncio.wait_for(over.wait(), 10)
    listener.close()


async def test_password_user_and_database(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        admin = SharedRedis(server.url)
        await admin.command("ACL", "SETUSER", "app", "on", ">p@ss:word", "~*", "+@all")
        await admin.command("CONFIG", "SET", "requirepass", "default-pass")
        app = SharedRedis(f"redis://app:p%40ss%3Aword@127.0.0.1:{server.port}/3")
        await app.command("SET", "a", "1")
        assert await app.command("ACL", "WHOAMI") == b"app"
        assert await admin.command("GET", "a") is None, "another database"
        with_password = SharedRedis(f"redis://:default-pass@127.0.0.1:{server.port}")
        assert await with_password.command("DBSIZE") == 0
        wrong = SharedRedis(f"redis://:secret-guess@127.0.0.1:{server.port}")
        with pytest.raises(StorageError) as caught:
            await wrong.command("PING")
        assert "secret-guess" not in str(caught.value)
        for shared in (admin, app, with_password, wrong):
            shared.close()
            await asyncio.sleep(0)  # the transport closes with the next turn


async def test_nonsense_from_the_server_is_an_error() -> None:
    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        over.set()

    over = asyncio.Event()
    listener = await asyncio.start_server(chatter, "127.0.0.1", 0)
    shared = SharedRedis(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    with pytest.raises(StorageError):
        await shared.command("PING")
    shared.close()
    await asyncio.sleep(0)  # the transport closes with the next turn
    await asyncio.wait_for(over.wait(), 10)
    listener.close()


async def test_closed_in_between(server: RedisServer) -> None:
    shared = SharedRedis(server.url)
    waiting = asyncio.ensure_future(shared.command("PING"))
    await asyncio.sleep(0)
    shared.close()
    await asyncio.sleep(0)  # the transport closes with the next turn
    with pytest.raises(StorageError, match="Aborted"):
        await waiting
    fresh = SharedRedis(server.url)
    assert await fresh.command("PING") == b"PONG"
    fresh.close()
    await asyncio.sleep(0)  # the transport closes with the next turn


def test_without_the_package_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(ConfigError, match="pip install hiredis"):
        SharedRedis("redis://127.0.0.1:1/0")
