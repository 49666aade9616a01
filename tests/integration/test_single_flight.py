"""Single flight on a running gateway: one upstream request for many clients, whatever becomes of some of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
MODEL, PATH = "sim-small", "/v1/chat/completions"
CLIENTS = 200


@pytest.fixture
def sim() -> Iterator[SimHandle]:
    with running_sim(model=MODEL, ttft_ms=300, tokens_per_second=40) as handle:
        yield handle


@pytest.fixture
def gateway(sim: SimHandle, tmp_path: Path) -> Iterator[Gateway]:
    backends = [{"name": "a", "url": sim.url}]
    with running_gateway(tmp_path, {"backends": backends, "single_flight": {"enabled": True}}, master=True) as running:
        wait_up(running)
        yield running


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 40, "stream": True, **more}


class Client:
    """One streaming client on a raw connection: its reply's bytes, de-chunked."""

    def __init__(self) -> None:
        self.head = b""
        self.body = b""
        self.whole = False

    async def run(self, port: int, body: dict[str, Any]) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self.writer = writer
        payload = orjson.dumps(body)
        head = f"POST {PATH} HTTP/1.1\r\nhost: gw\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)
        try:
            self.head = (await reader.readuntil(b"\r\n\r\n")).lower()
            while size := int(await reader.readline(), 16):
                self.body += await reader.readexactly(size)
                await reader.readexactly(2)
            self.whole = True
        except (ConnectionError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return self


def test_two_hundred_streams_one_generation(gateway: Gateway, sim: SimHandle) -> None:
    async def all_of_them() -> list[Client]:
        async def one(n: int) -> Client:
            await asyncio.sleep(n / CLIENTS)  # within a second: some find the stream under way
            return await Client().run(gateway.port, chat("two hundred"))

        return await asyncio.gather(*(one(n) for n in range(CLIENTS)))

    clients = asyncio.run(all_of_them())
    assert len(sim.requests(PATH)) == 1
    assert len({client.body for client in clients}) == 1 and clients[0].body.endswith(b"data: [DONE]\n\n")
    assert all(client.whole for client in clients)
    shared = [client for client in clients if b"x-llmtap-cache: shared" in client.head]
    assert len(shared) == CLIENTS - 1
    records = eventually(
        lambda: len(found := [r for r in gateway.records() if r["t"] == "end"]) == CLIENTS and found, "not all captured"
    )
    assert {r["outcome"] for r in records} == {"ok"}
    assert sum(r["cache"] == "shared" for r in records) == CLIENTS - 1
    assert len({orjson.dumps(r["summary"]["choices"]) for r in records}) == 1
    assert gateway.metric("llmtap_cache_lookups_total", result="shared") == CLIENTS - 1
    counted = {r["summary"]["usage"]["completion_tokens"] for r in records}
    assert {gateway.metric("llmtap_generation_tokens_total")} == counted, "counted once"


def test_whichever_is_left_has_it_whole(gateway: Gateway, sim: SimHandle) -> None:
    """199 of 200 leave, the leader among them."""

    async def leaving(stays: int) -> tuple[bytes, list[Client]]:
        clients = [Client() for _ in range(CLIENTS)]
        tasks = [asyncio.ensure_future(client.run(gateway.port, chat(f"leaving {stays}"))) for client in clients]
        while not all(client.body for client in clients):
            await asyncio.sleep(0.01)
        for n, client in enumerate(clients):
            if n != stays:
                client.writer.transport.abort()
        await asyncio.gather(*tasks)
        return clients[stays].body, clients

    for stays in (CLIENTS - 1, 0):
        body, clients = asyncio.run(leaving(stays))
        assert clients[stays].whole and body.endswith(b"data: [DONE]\n\n")
        assert all(body.startswith(client.body) for client in clients)
    assert len(sim.requests(PATH)) == 2
    assert not any(request["aborted"] for request in sim.requests(PATH))


def test_when_nobody_is_left_the_backend_is_stopped(gateway: Gateway, sim: SimHandle) -> None:
    async def all_leave() -> None:
        clients = [Client() for _ in range(5)]
        tasks = [asyncio.ensure_future(client.run(gateway.port, chat("nobody", max_tokens=400))) for client in clients]
        while not all(client.body for client in clients):
            await asyncio.sleep(0.01)
        for client in clients:  # the leader first
            client.writer.transport.abort()
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)

    asyncio.run(all_leave())
    eventually(lambda: sim.requests(PATH)[-1]["aborted"], "the backend generates for nobody", timeout_s=3)


def test_a_backend_that_dies_ends_all_with_an_error(gateway: Gateway, sim: SimHandle) -> None:
    ended = []

    async def dying() -> list[Client]:
        clients = [Client() for _ in range(CLIENTS)]
        tasks = [asyncio.ensure_future(client.run(gateway.port, chat("dying"))) for client in clients]
        while not all(client.body for client in clients):
            await asyncio.sleep(0.01)
        sim.kill()
        killed = time.monotonic()
        await asyncio.gather(*tasks)
        ended.append(time.monotonic() - killed)
        return clients

    clients = asyncio.run(dying())
    assert ended[0] < 1, f"{ended[0]:.2f} s"
    for client in clients:
        last = client.body.strip().split(b"\n\n")[-1]
        assert orjson.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"


def test_a_failure_fails_over_once_for_all(tmp_path: Path) -> None:
    with running_sim(model=MODEL) as bad, running_sim(model=MODEL, tokens_per_second=200) as good:
        backends = [{"name": "bad", "url": bad.url}, {"name": "good", "url": good.url}]
        with running_gateway(tmp_path, {"backends": backends, "single_flight": {"enabled": True}}) as gateway:
            wait_up(gateway)
            bad.fail("http_503", times=None, path=PATH)

            async def some() -> list[httpx.Response]:
                async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
                    ask = [client.post(PATH, json=chat("fail over", stream=n % 2 == 0)) for n in range(20)]
                    return await asyncio.gather(*ask)

            replies = asyncio.run(some())
            assert {r.status_code for r in replies} == {200}
            assert len(good.requests(PATH)) == 2 and len(bad.requests(PATH)) <= 2
            assert len({r.content for r in replies}) == 2


def test_a_leader_that_leaves_while_it_waits(tmp_path: Path) -> None:
    """It waits for a place in the queue; its client goes; the one behind it asks in its stead."""
    with running_sim(model=MODEL, ttft_ms=0, tokens_per_second=20) as sim:
        backends = [{"name": "a", "url": sim.url, "max_concurrency": 1}]
        with running_gateway(tmp_path, {"backends": backends, "single_flight": {"enabled": True}}) as gateway:
            wait_up(gateway)

            async def story() -> Client:
                busy = Client()
                first = asyncio.ensure_future(busy.run(gateway.port, chat("busy", max_tokens=30)))
                while not busy.body:
                    await asyncio.sleep(0.01)
                leader, follower = Client(), Client()
                leading = asyncio.ensure_future(leader.run(gateway.port, chat("the same")))
                while not hasattr(leader, "writer"):
                    await asyncio.sleep(0.01)
                following = asyncio.ensure_future(follower.run(gateway.port, chat("the same")))
                while httpx.get(f"{gateway.url}/stats").json()["in_flight"] < 3:
                    await asyncio.sleep(0.01)
                leader.writer.transport.abort()
                await asyncio.gather(first, leading)
                return await following

            follower = asyncio.run(story())
            assert follower.whole and follower.body.endswith(b"data: [DONE]\n\n")
            assert b"x-llmtap-cache: bypass" in follower.head
            assert len(sim.requests(PATH)) == 2
