import asyncio
from typing import Any

import pytest
from mitmproxy.connection import ConnectionState
from mitmproxy.test import tflow

from llmtap.core.plan import Target
from llmtap.lane.head import HeaderKinds
from llmtap.lane.limits import LaneLimits
from llmtap.lane.pool import Pool
from llmtap.lane.upstream import Failure, Upstream
from support.lane import echo, until, upstream

CLIENT = tflow.tclient_conn()


def make(limits: LaneLimits | None = None) -> tuple[Pool, list[str]]:
    hooks: list[str] = []

    def fire(name: str, data: Any) -> None:
        hooks.append(name)

    return Pool(asyncio.get_running_loop(), limits or LaneLimits(), HeaderKinds(), fire), hooks


async def exchange(upstream: Upstream) -> None:
    upstream.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"", False)
    await upstream.end()
    upstream.release()


async def test_a_connection_is_used_again_last_in_first_out() -> None:
    async with upstream(echo) as up:
        pool, hooks = make()
        first = await pool.connect(up.target(), CLIENT, 5)
        second = await pool.connect(up.target(), CLIENT, 5)
        assert pool.take(up.target()) is None and pool.open_count == 2
        await exchange(first)
        await exchange(second)
        assert pool.idle_count == 2
        assert pool.take(up.target()) is second and pool.take(up.target()) is first and pool.take(up.target()) is None
        assert hooks == ["server_connect", "server_connected"] * 2
        assert first.server.state is ConnectionState.OPEN and first.server.peername == ("127.0.0.1", up.port)
        pool.close()
        await until(lambda: pool.open_count == 0)
        assert hooks[-1] == "server_disconnected" and first.server.state is ConnectionState.CLOSED


async def test_backends_do_not_share() -> None:
    async with upstream(echo) as a, upstream(echo) as b:
        pool, _ = make()
        await exchange(await pool.connect(a.target(), CLIENT, 5))
        assert pool.take(b.target()) is None
        assert pool.take(a.target(tls=True)) is None and pool.take(a.target(uds="/x")) is None
        assert pool.take(a.target("other name", headers=((b"a", b"b"),))) is not None
        pool.close()


async def test_an_idle_connection_has_its_time_and_the_pool_its_size() -> None:
    async with upstream(echo) as up:
        pool, _ = make(LaneLimits(pool_size=1))
        one, two = await pool.connect(up.target(), CLIENT, 5), await pool.connect(up.target(), CLIENT, 5)
        await exchange(one)
        await exchange(two)
        assert pool.idle_count == 1
        await until(lambda: two.closed)
        one.idle_since -= 4.5
        assert pool.take(up.target()) is None
        await until(lambda: one.closed)
        three = await pool.connect(up.target(), CLIENT, 5)
        await exchange(three)
        now = asyncio.get_running_loop().time()
        pool.sweep(now)
        assert pool.idle_count == 1
        pool.sweep(now + 5)
        assert pool.idle_count == 0
        await until(lambda: pool.open_count == 0)


async def test_a_connection_the_backend_closed_is_forgotten() -> None:
    async with upstream(echo) as up:
        pool, hooks = make()
        await exchange(await pool.connect(up.target(), CLIENT, 5))
        up.peers[0].close()
        await until(lambda: pool.idle_count == 0)
        assert hooks[-1] == "server_disconnected" and pool.open_count == 0


async def test_refused_unknown_and_forbidden() -> None:
    async with upstream(echo) as up:
        port = up.port
    pool, hooks = make()
    for target in (Target("a", "127.0.0.1", port), Target("a", "name.invalid", 80), Target("a", "h", 0, uds="/nowhere")):
        with pytest.raises(Failure) as caught:
            await pool.connect(target, CLIENT, 5)
        assert caught.value.reason == "refused" and hooks[-2:] == ["server_connect", "server_connect_error"]
    assert pool.open_count == 0


async def test_the_second_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    async with upstream(echo) as up:
        pool, _ = make()

        async def addresses(host: str, port: int) -> Any:
            return [(socket.AF_INET, ("127.0.0.3", up.port)), (socket.AF_INET, ("127.0.0.1", up.port))]

        monkeypatch.setattr(pool._resolver, "addresses", addresses)
        got = await pool.connect(Target("a", "name", up.port), CLIENT, 5)
        assert got.server.peername == ("127.0.0.1", up.port)
        pool.close()
        await until(lambda: pool.open_count == 0)


async def test_async_hooks_are_awaited_and_a_cancelled_connect_leaves_nothing() -> None:
    async with upstream(echo) as up:
        order: list[str] = []
        go_on = asyncio.Event()

        async def slow(name: str) -> None:
            await go_on.wait()
            order.append(name)

        pool = Pool(asyncio.get_running_loop(), LaneLimits(), HeaderKinds(), lambda name, data: slow(name))
        task = asyncio.ensure_future(pool.connect(up.target(), CLIENT, 5))
        await asyncio.wait([task], timeout=0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.open_count == 0 and up.connections == 0
        go_on.set()
        await pool.connect(up.target(), CLIENT, 5)
        assert order == ["server_connect", "server_connected"]
        pool.close()
        await until(lambda: "server_disconnected" in order)
