"""The cache on a running gateway: one generation for many requests, both forms, quick hits, workers that share."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
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
MODEL, PATH = "sim-small", "/v1/chat/completions"
KEYS = ("secret-a", "secret-b")


@pytest.fixture(scope="module")
def sim() -> Iterator[SimHandle]:
    with running_sim(model=MODEL, ttft_ms=1, tokens_per_second=2000) as handle:
        yield handle


def config(sim: SimHandle, **cache: Any) -> dict[str, Any]:
    keys = [{"name": key[-1], "key_sha256": sha256(key.encode()).hexdigest()} for key in KEYS]
    return {
        "backends": [{"name": "a", "url": sim.url}],
        "auth": {"enabled": True, "keys": keys},
        "cache": {"enabled": True, **cache},
    }


@pytest.fixture(scope="module")
def gateway(sim: SimHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), config(sim), master=True) as running:
        wait_up(running)
        yield running


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 12, "temperature": 0, **more}


def sdk(gateway: Gateway, key: str = KEYS[0]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def generations(sim: SimHandle, text: str) -> int:
    return sum(text in str(request["body"]) for request in sim.requests(PATH))


def test_a_thousand_requests_one_generation_and_quick_hits(gateway: Gateway, sim: SimHandle) -> None:
    body = chat("a thousand times")
    times = []
    with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {KEYS[0]}"}) as client:
        first = client.post(PATH, json=body)
        assert first.headers["x-llmtap-cache"] == "miss"
        payload = first.request.content
    replies = set()

    head = f"POST {PATH} HTTP/1.1\r\nhost: gw\r\nauthorization: Bearer {KEYS[0]}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as sock:
        for _ in range(999):
            start = time.perf_counter()
            sock.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += sock.recv(65536)
            answer, _, reply = answer.partition(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            while len(reply) < length:
                reply += sock.recv(65536)
            times.append(time.perf_counter() - start)
            replies.add(reply)
            assert b"x-llmtap-cache: hit" in answer.lower()
    assert replies == {first.content}
    assert generations(sim, "a thousand times") == 1
    assert statistics.median(times) < 0.001, f"{statistics.median(times) * 1e6:.0f} us"


def test_streams_and_whole_replies_from_one_generation(gateway: Gateway, sim: SimHandle) -> None:
    with sdk(gateway) as client:
        whole = client.chat.completions.create(**chat("both forms"))  # type: ignore[call-overload]
        for usage in (False, True):
            options = {"stream_options": {"include_usage": True}} if usage else {}
            raw = client.chat.completions.with_raw_response.create(**chat("both forms", stream=True, **options))
            assert raw.headers["x-llmtap-cache"] == "hit"
            chunks = list(raw.parse())
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == whole.choices[0].message.content
            ends = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
            assert ends == [whole.choices[0].finish_reason]
            counted = [c.usage for c in chunks if c.usage]
            assert [u.completion_tokens for u in counted] == ([whole.usage.completion_tokens] if usage else [])
        stream = client.chat.completions.create(**chat("the other way", stream=True))
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        again = client.chat.completions.with_raw_response.create(**chat("the other way"))
        assert again.headers["x-llmtap-cache"] == "hit" and again.parse().choices[0].message.content == text
        assert again.parse().usage is not None and again.parse().usage.completion_tokens > 0
    assert generations(sim, "both forms") == generations(sim, "the other way") == 1
    begin, end = gateway.last()
    assert (end["outcome"], end["cache"], end["attempts"]) == ("cached", "hit", 0) and begin["key_name"] == "a"
    assert end["summary"]["choices"][0]["content"] == text and "backend" not in end


def test_a_stream_is_given_again_byte_for_byte(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {KEYS[0]}"}) as client:
        one, two = (client.post(PATH, json=chat("bytes", stream=True)) for _ in range(2))
    assert (one.headers["x-llmtap-cache"], two.headers["x-llmtap-cache"]) == ("miss", "hit")
    assert one.content == two.content and one.headers["content-type"] == two.headers["content-type"]


def test_each_key_has_its_own_and_sampling_is_not_kept(gateway: Gateway, sim: SimHandle) -> None:
    for key in KEYS:
        with sdk(gateway, key) as client:
            client.chat.completions.create(**chat("mine"))  # type: ignore[call-overload]
    assert generations(sim, "mine") == 2
    body = chat("dice", temperature=1)
    for _ in range(2):
        reply = httpx.post(f"{gateway.url}{PATH}", json=body, headers={"authorization": f"Bearer {KEYS[0]}"})
        assert reply.headers["x-llmtap-cache"] == "bypass"
    assert generations(sim, "dice") == 2


def test_metrics(gateway: Gateway) -> None:
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    for _ in range(2):
        httpx.post(f"{gateway.url}{PATH}", json=chat("counted"), headers=headers)
    families = httpx.get(f"{gateway.url}/internal/metrics", headers=headers).json()
    samples = [s for f in families.values() for s in f["samples"]]
    lookups = {s["labels"]["result"]: s["value"] for s in samples if s["name"] == "llmtap_cache_lookups_total"}
    assert lookups["hit"] >= 1 and lookups["miss"] >= 1
    cached = [s for s in samples if s["name"] == "llmtap_requests_total" and s["labels"]["outcome"] == "cached"]
    assert cached and all(s["labels"]["backend"] == "none" for s in cached)


def test_at_the_pace_it_came(sim: SimHandle, tmp_path: Path) -> None:
    with (
        running_sim(model=MODEL, ttft_ms=0, tokens_per_second=40) as slow,
        running_gateway(tmp_path, config(slow, replay="original")) as gateway,
    ):
        wait_up(gateway)
        took = []
        with sdk(gateway) as client:
            for _ in range(2):
                start = time.monotonic()
                list(client.chat.completions.create(**chat("slowly", stream=True)))  # type: ignore[call-overload]
                took.append(time.monotonic() - start)
        assert generations(slow, "slowly") == 1 and took[1] > 0.15, took


def test_in_a_stock_mode(sim: SimHandle, tmp_path: Path) -> None:
    with running_gateway(tmp_path, {"cache": {"enabled": True}}, mode=f"reverse:{sim.url}") as gateway:
        wait_up(gateway)
        replies = [httpx.post(f"{gateway.url}{PATH}", json=chat("stock", stream=stream)) for stream in (False, False, True)]
    assert [r.headers["x-llmtap-cache"] for r in replies] == ["miss", "hit", "hit"]
    assert replies[0].content == replies[1].content and replies[2].text.endswith("data: [DONE]\n\n")
    assert generations(sim, "stock") == 1


@pytest.mark.skipif(not AVAILABLE, reason="redis-server is not installed")
def test_two_gateways_share_through_redis(sim: SimHandle, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with running_redis(tmp_path / "redis") as redis, contextlib.ExitStack() as stack:
        shared = config(sim, storage=redis.url)
        gateways = [stack.enter_context(running_gateway(tmp_path / str(n), shared, master=True)) for n in range(2)]
        replies = []
        for gateway in gateways:
            wait_up(gateway)
            headers = {"authorization": f"Bearer {KEYS[0]}"}
            replies.append(httpx.post(f"{gateway.url}{PATH}", json=chat("shared"), headers=headers))
        assert [r.headers["x-llmtap-cache"] for r in replies] == ["miss", "hit"]
        assert replies[0].content == replies[1].content and generations(sim, "shared") == 1
        redis.kill()
        reply = httpx.post(f"{gateways[0].url}{PATH}", json=chat("shared"), headers=headers)
        assert reply.status_code == 200 and reply.headers["x-llmtap-cache"] == "miss"
