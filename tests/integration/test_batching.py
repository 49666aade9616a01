"""Batching on a running gateway: fewer upstream calls, every answer right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.size import size
from support.wait import eventually

pytestmark = pytest.mark.integration
MODEL = "sim-small"
REQUESTS = size("LLMTAP_BATCHED", 500, 1000)


@pytest.fixture(scope="module")
def sim() -> Iterator[SimHandle]:
    with running_sim(model=MODEL, ttft_ms=0, tokens_per_second=5000) as handle:
        yield handle


@pytest.fixture(scope="module")
def gateway(sim: SimHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    config = {
        "backends": [{"name": "a", "url": sim.url}],
        "batching": {"enabled": True, "max_batch_size": 16, "max_wait_ms": 150, "chat": True},
        "logging": {"request_log": False},
    }
    with running_gateway(tmp_path_factory.mktemp("gateway"), config, master=True) as running:
        wait_up(running)
        yield running


async def embed(url: str, texts: list[str], at_once: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        ask = [client.post("/v1/embeddings", json={"model": MODEL, "input": text, "dimensions": 4}) for text in texts]
        return await asyncio.gather(*ask)


def test_a_thousand_embeddings(gateway: Gateway, sim: SimHandle) -> None:
    sim.reset()
    texts = [f"text number {n}" for n in range(REQUESTS)]
    batched = asyncio.run(embed(gateway.url, texts, 64))
    calls = len(sim.requests("/v1/embeddings"))
    assert calls * 5 <= REQUESTS, f"{calls} upstream calls"
    assert {r.status_code for r in batched} == {200}
    direct = asyncio.run(embed(sim.url, texts, 16))
    for one, other in zip(batched, direct, strict=True):
        assert one.json()["data"] == other.json()["data"]
        assert one.json()["object"] == "list" and one.json()["model"] == MODEL
    tokens = sum(r.json()["usage"]["prompt_tokens"] for r in batched)
    assert tokens == sum(r.json()["usage"]["prompt_tokens"] for r in direct), "the parts add up to what the backend counted"
    assert gateway.metric("llmtap_batch_size_sum") == gateway.metric("llmtap_batch_wait_seconds_count") > REQUESTS * 0.9
    assert gateway.metric("llmtap_prompt_tokens_total", endpoint="embeddings") == tokens
    begin, end = gateway.last()
    assert (begin["endpoint"], end["outcome"], end["backend"], end["attempts"]) == ("embeddings", "ok", "a", 1)
    assert begin["body"]["json"]["input"].startswith("text number")


def test_one_too_long_does_not_spoil_the_others(gateway: Gateway) -> None:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            bodies = [{"model": MODEL, "prompt": text, "max_tokens": 3} for text in ("short", "x " * 60_000, "also short")]
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    replies = asyncio.run(ask())
    assert [r.status_code for r in replies] == [200, 400, 200]
    assert "maximum context length" in replies[1].text


def test_completions_and_chats_with_the_official_sdk(gateway: Gateway, sim: SimHandle) -> None:
    prompts = [f"tell me about {topic}" for topic in ("rivers", "lakes", "seas", "rivers")]

    async def ask(url: str) -> tuple[list[Any], list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as sdk:
            texts = asyncio.gather(*(sdk.completions.create(model=MODEL, prompt=p, max_tokens=9, temperature=0) for p in prompts))
            talks = asyncio.gather(
                *(
                    sdk.chat.completions.create(
                        model=MODEL, messages=[{"role": "user", "content": p}], max_tokens=9, temperature=0
                    )
                    for p in prompts
                )
            )
            return await texts, await talks

    sim.reset()
    texts, talks = asyncio.run(ask(gateway.url))
    seen = [r for r in sim.requests() if r["method"] == "POST"]
    assert sorted(r["path"] for r in seen) == ["/v1/chat/completions/batch", "/v1/completions"]
    expected_texts, expected_talks = asyncio.run(ask(sim.url))
    assert [t.choices[0].text for t in texts] == [t.choices[0].text for t in expected_texts]
    assert [t.choices[0].message.content for t in talks] == [t.choices[0].message.content for t in expected_talks]
    assert all(t.usage.completion_tokens > 0 for t in texts)
    asked = json.loads(next(r["body"] for r in seen if r["path"] == "/v1/completions"))
    assert len(asked["prompt"]) == 3, "the same prompt once"


def test_streams_go_their_own_way(gateway: Gateway, sim: SimHandle) -> None:
    sim.reset()
    body = {"model": MODEL, "prompt": "x", "max_tokens": 4, "stream": True}
    assert httpx.post(f"{gateway.url}/v1/completions", json=body).text.endswith("data: [DONE]\n\n")
    assert len(sim.requests("/v1/completions")) == 1


def test_a_backend_that_is_away_is_everybodys_error(sim: SimHandle, tmp_path: Path) -> None:
    config = {"backends": [{"name": "gone", "url": "http://127.0.0.1:9"}], "batching": {"enabled": True, "max_wait_ms": 100}}
    with running_gateway(tmp_path, config) as gateway:
        replies = asyncio.run(embed(gateway.url, ["a", "b", "c"], 8))
        assert {r.status_code for r in replies} <= {502, 503}
        assert gateway.metric("llmtap_requests_running") == 0


def test_the_queue_is_empty_afterwards(gateway: Gateway) -> None:
    assert gateway.metric("llmtap_requests_waiting") == 0
    stats = httpx.get(f"{gateway.url}/stats").json()
    eventually(lambda: httpx.get(f"{gateway.url}/stats").json()["in_flight"] == 0, "something still runs")
    assert all(b["in_flight"] == 0 for b in stats["backends"])
