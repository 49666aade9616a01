"""Health checks: what each answer of a backend means. The network is httpx's mock transport."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from llmtap.health import Health, Seen, look
from llmtap.policy.backends import Backend, Backends

MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "n"}]}
Handler = Callable[[httpx.Request], httpx.Response]


async def check(handler: Handler, api_key: str | None = None) -> Backend:
    backend = Backend("a", "127.0.0.1", 1, api_key=api_key)
    health = Health(Backends([backend]), 5, 1, lambda b: None)
    with httpx.Client(transport=httpx.MockTransport(handler)) as client:
        health.take(backend, look(backend, client))
    return backend


def answering(health: int = 200, models: int = 200, listing: object = MODELS) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(health) if request.url.path == "/health" else httpx.Response(models, json=listing)

    return handler


async def test_a_vllm() -> None:
    backend = await check(answering())
    assert backend.state == "up" and backend.models == ("m", "n")


async def test_a_server_without_health_is_judged_by_its_models() -> None:
    assert (await check(answering(health=404))).state == "up"


@pytest.mark.parametrize(
    "handler", [answering(health=503), answering(models=500), answering(listing={"nope": 1}), answering(listing=[1])]
)
async def test_what_is_down(handler: Handler) -> None:
    backend = await check(handler)
    assert backend.state == "down" and backend.reason


async def test_no_connection() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert (await check(handler)).reason == "ConnectError"


async def test_the_key_is_sent_to_the_list_only() -> None:
    seen: dict[str, str | None] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        seen[request.url.path] = request.headers.get("authorization")
        return answering()(request)

    await check(handler, api_key="k")
    assert seen == {"/health": None, "/v1/models": "Bearer k"}


async def test_a_list_that_only_clients_may_see() -> None:
    backend = await check(answering(models=401))
    assert backend.state == "up" and backend.models is None
    assert (await check(answering(models=401), api_key="wrong")).state == "down"


async def test_a_failed_request_takes_it_out_and_wakes_the_check() -> None:
    told: list[str] = []
    backend = Backend("a", "127.0.0.1", 1, state="up")
    health = Health(Backends([backend]), 5, 1, lambda b: told.append(b.state))
    health.failed("a", "refused")
    assert backend.state == "down" and told == ["down"] and health._wake["a"].is_set()


async def test_start_and_stop() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and never answers
        changed = asyncio.Event()
        health = Health(Backends([Backend("a", *listener.getsockname())]), 5, 0.1, lambda b: changed.set())
        health.start()
        await asyncio.wait_for(changed.wait(), 20)
        health.stop()
        results = await asyncio.gather(*health._tasks, return_exceptions=True)
    assert [type(r) for r in results] == [asyncio.CancelledError]


async def test_a_check_that_breaks_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([RuntimeError("a bug"), Seen("up")])
    up = asyncio.Event()

    def broken(backend: Backend, client: httpx.Client) -> Seen:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("llmtap.health.look", broken)
    health = Health(Backends([Backend("a", "127.0.0.1", 1)]), 0.01, 1, lambda b: up.set() if b.state == "up" else None)
    health.start()
    await asyncio.wait_for(up.wait(), 20)
    health.stop()


async def test_a_backend_on_a_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    hosts: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            hosts.append(head.split(b"ost: ")[1].split(b"\r\n")[0].decode())
            body = b'{"object":"list","data":[{"id":"m"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))
            writer.close()
            return

    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    server = await asyncio.start_unix_server(serve, path)
    backend = Backend("a", "", 80, uds=path)
    health = Health(Backends([backend]), 5, 1, lambda b: loop.call_soon_threadsafe(changed.set) and None)
    health.start()
    await asyncio.wait_for(changed.wait(), 5)
    health.stop()
    server.close()
    assert backend.state == "up" and backend.models == ("m",) and set(hosts) == {"localhost"}
