"""Limits on running gateways: exact counts under load, in memory and over several gateways that share Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.redis_server import AVAILABLE, running_redis
from support.sim import SimHandle, running_sim

pytestmark = pytest.mark.integration
MODEL = "sim-small"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
KEYS, LIMIT, REQUESTS, CONNECTIONS = 50, 12, 10_000, 500


@pytest.fixture(scope="module")
def sim() -> Iterator[SimHandle]:
    with running_sim(model=MODEL, ttft_ms=0, tokens_per_second=100000) as handle:
        yield handle


def config(sim: SimHandle, **limits: Any) -> dict[str, Any]:
    keys = [{"name": f"k{n}", "key_sha256": sha256(f"secret-{n}".encode()).hexdigest()} for n in range(KEYS)]
    return {
        "backends": [{"name": "a", "url": sim.url}],
        "auth": {"enabled": True, "keys": keys},
        "rate_limit": {"enabled": True, "window_seconds": 600, "default_limit": LIMIT, **limits},
        "capture": {"enabled": False},
        "logging": {"request_log": False},
    }


async def storm(ports: list[int]) -> dict[int, Counter[int]]:
    """REQUESTS requests over CONNECTIONS keep-alive connections at once, the keys in turn: statuses by key."""
    seen: dict[int, Counter[int]] = {n: Counter() for n in range(KEYS)}
    body = httpx.Request("POST", "http://x", json=CHAT).content

    async def client(number: int) -> None:
        port = ports[number % len(ports)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(REQUESTS // CONNECTIONS):
            key = (number + turn * 7) % KEYS
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: gw\r\ncontent-type: application/json\r\n"
                b"authorization: Bearer secret-%d\r\ncontent-length: %d\r\n\r\n" % (key, len(body)) + body
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            seen[key][int(head.split(b" ", 2)[1])] += 1
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    await asyncio.gather(*(client(number) for number in range(CONNECTIONS)))
    return seen


def check(seen: dict[int, Counter[int]]) -> None:
    assert sum(sum(counts.values()) for counts in seen.values()) == REQUESTS
    for key, counts in seen.items():
        assert set(counts) == {200, 429} and counts[200] == LIMIT, f"key {key}: {counts}"


def test_exact_counts_in_memory(sim: SimHandle, tmp_path: Path) -> None:
    with running_gateway(tmp_path, config(sim), master=True) as gateway:
        wait_up(gateway)
        check(asyncio.run(storm([gateway.port])))


@pytest.mark.skipif(not AVAILABLE, reason="redis-server is not installed")
@pytest.mark.parametrize("workers", [1, 3])
def test_exact_counts_in_redis(sim: SimHandle, tmp_path: Path, workers: int) -> None:
    (tmp_path / "redis").mkdir()
    with running_redis(tmp_path / "redis") as redis, contextlib.ExitStack() as stack:
        shared = config(sim, storage=redis.url)
        gateways: list[Gateway] = [
            stack.enter_context(running_gateway(tmp_path / str(n), shared, master=True)) for n in range(workers)
        ]
        for gateway in gateways:
            wait_up(gateway)
        check(asyncio.run(storm([gateway.port for gateway in gateways])))


def test_what_a_client_is_told(sim: SimHandle, tmp_path: Path) -> None:
    with running_gateway(tmp_path, config(sim, default_limit=2, tokens_per_minute=1000)) as gateway:
        wait_up(gateway)
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="secret-1", max_retries=0) as sdk:
            raw = sdk.chat.completions.with_raw_response.create(**CHAT)  # type: ignore[call-overload]
            assert raw.headers["x-ratelimit-limit-requests"] == "2" and raw.headers["x-ratelimit-remaining-requests"] == "1"
            assert raw.headers["x-ratelimit-reset-requests"] == "10m0s"
            assert (
                raw.headers["x-ratelimit-limit-tokens"] == "1000"
                and 900 < int(raw.headers["x-ratelimit-remaining-tokens"]) < 1000
            )
            assert raw.headers["x-ratelimit-limit"] == "2" and raw.headers["x-ratelimit-remaining"] == "1"
            sdk.chat.completions.create(**CHAT)  # type: ignore[call-overload]
            with pytest.raises(openai.RateLimitError) as caught:
                sdk.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        refused = caught.value.response
        assert caught.value.code == "rate_limit_exceeded" and 590 < int(refused.headers["retry-after"]) <= 600
        assert refused.headers["x-ratelimit-remaining"] == "0"
        claude = httpx.post(f"{gateway.url}/v1/messages", json=CHAT, headers={"x-api-key": "secret-1"})
        assert claude.status_code == 429 and claude.json()["error"]["type"] == "rate_limit_error"
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="secret-2", max_retries=0) as sdk:
            sdk.chat.completions.create(**CHAT)  # type: ignore[call-overload]


@pytest.mark.skipif(not AVAILABLE, reason="redis-server is not installed")
@pytest.mark.parametrize(("policy", "status"), [("deny", 503), ("allow", 200)])
def test_redis_goes_and_comes_back(sim: SimHandle, tmp_path: Path, policy: str, status: int) -> None:
    (tmp_path / "redis").mkdir()

    def ask(gateway: Gateway) -> httpx.Response:
        return httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer secret-3"})

    with running_redis(tmp_path / "redis") as redis:
        limits = config(sim, storage=redis.url, on_storage_error=policy, tokens_per_minute=100_000)
        with running_gateway(tmp_path, limits) as gateway:
            wait_up(gateway)
            assert ask(gateway).status_code == 200
            redis.kill()
            reply = ask(gateway)
            assert reply.status_code == status
            if status == 503:
                assert reply.json()["error"]["code"] == "rate_limit_unavailable"
            metrics = httpx.get(f"{gateway.url}/metrics", headers={"authorization": "Bearer secret-4"}).text
            assert "llmtap_rate_limit_storage_errors_total" in metrics
            (tmp_path / "again").mkdir()
            with running_redis(tmp_path / "again", redis.port):
                while (reply := ask(gateway)).status_code != 200 or "x-ratelimit-limit" not in reply.headers:
                    pass  # it is left alone for a second
                assert int(reply.headers["x-ratelimit-remaining"]) < LIMIT
