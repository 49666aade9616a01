"""kill -9 of a backend under 200 streams: who has not had a byte yet notices nothing, who has gets an error event, and the
backend is used again within one health interval of its return."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import SimHandle, running_sim, running_sim_async
from support.wait import eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
STREAMS = 200
INTERVAL_S = 2.0
MODEL = "sim-small"


@dataclass
class Seen:
    """One stream as its client saw it. `events`: data lines, with the time each came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    events: list[tuple[float, Any]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return bool(self.events) and self.events[-1][1] == "[DONE]"

    @property
    def error(self) -> dict[str, Any] | None:
        last = self.events[-1][1] if self.events else None
        return last.get("error") if isinstance(last, dict) else None


async def stream(port: int, name: str) -> Seen:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"[[sim:tokens=40]] {name}"}],
        "max_tokens": 40,
        "stream": True,
    }
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    seen = Seen()
    try:
        seen.status = int((await reader.readline()).split()[1])
        while (line := (await reader.readline()).strip()) != b"":
            key, _, value = line.decode().partition(": ")
            seen.headers[key.lower()] = value
        while line := await reader.readline():
            if line.startswith(b"data: "):
                payload = line[6:].strip()
                seen.events.append((time.monotonic(), payload.decode() if payload == b"[DONE]" else json.loads(payload)))
            if seen.finished or seen.error or line == b"0\r\n":
                break
    finally:
        writer.close()
    return seen


async def load(gateway: Gateway, victim: SimHandle) -> list[Seen]:
    """200 streams, begun one after the other; the backend dies while many wait for their first byte and many have had some."""
    tasks = []
    for i in range(STREAMS):
        tasks.append(asyncio.create_task(stream(gateway.port, f"stream {i}")))
        await asyncio.sleep(0.01)
        if i == STREAMS * 3 // 4:
            victim.kill()
    return list(await asyncio.gather(*tasks))


async def test_a_backend_killed_under_load(tmp_path: Path) -> None:
    pace = {"model": MODEL, "tokens_per_second": 40, "ttft_ms": 700}
    with running_sim(**pace) as a, running_sim(**pace) as b:
        config = {
            "backends": [{"name": "a", "url": a.url}, {"name": "b", "url": b.url}],
            "routing": {"health_interval_s": INTERVAL_S},
            "logging": {"request_log": False},
        }
        with running_gateway(tmp_path, config) as gateway:
            wait_up(gateway)
            async with asyncio.timeout(120):
                streams = await load(gateway, a)
            assert {s.status for s in streams} == {200}
            broken = [s for s in streams if not s.finished]
            assert all(s.error and s.error["code"] == "upstream_error" for s in broken), "a cut stream ends with an error event"
            assert all(len(s.events) > 1 for s in broken), "one that had not yet received a byte failed"
            assert {s.headers["x-llmtap-backend"] for s in broken} == {"a"}
            retried = [s for s in streams if s.headers["x-llmtap-attempts"] == "2"]
            assert all(s.finished and s.headers["x-llmtap-backend"] == "b" for s in retried)
            # both kinds were there, else nothing was tested
            assert len(broken) > 10 and len(retried) > 10, Counter(s.headers["x-llmtap-attempts"] for s in streams)
            assert gateway.metric("llmtap_requests_total", outcome="ok") == STREAMS - len(broken)
            assert gateway.metric("llmtap_requests_total", outcome="upstream_error") == len(broken)
            eventually(lambda: told(gateway)["a"]["state"] == "down", "its death went unnoticed")
            eventually(lambda: {b["in_flight"] for b in told(gateway).values()} == {0}, "a place was not given back")

            with running_sim(**pace, port=a.port):
                returned = time.monotonic()
                await asyncio.to_thread(eventually, lambda: served_by(gateway) == "a", "it is not used again", 20.0, 0.001)
                assert time.monotonic() - returned < INTERVAL_S


def told(gateway: Gateway) -> dict[str, dict[str, Any]]:
    return {b["name"]: b for b in httpx.get(f"{gateway.url}/stats").json()["backends"]}


def served_by(gateway: Gateway) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "[[sim:ttft=0]] who"}], "max_tokens": 1}
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=body)
    assert reply.status_code == 200
    return reply.headers["x-llmtap-backend"]


async def test_a_backend_that_flaps_costs_nobody_anything(tmp_path: Path) -> None:
    """Killed and started again three times: every short request is answered."""
    fast = {"model": MODEL, "tokens_per_second": 0, "ttft_ms": 0}
    with running_sim(**fast) as b, running_sim(**fast) as first:
        config = {
            "backends": [{"name": "a", "url": first.url}, {"name": "b", "url": b.url}],
            "routing": {"health_interval_s": 0.5},
            "logging": {"request_log": False},
        }
        with running_gateway(tmp_path, config) as gateway:
            wait_up(gateway)
            over = asyncio.Event()
            statuses: Counter[int] = Counter()
            served: Counter[str] = Counter()

            async def client() -> None:
                body = {"model": MODEL, "messages": [{"role": "user", "content": "short"}], "max_tokens": 2}
                async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
                    while not over.is_set():
                        reply = await http.post("/v1/chat/completions", json=body)
                        statuses[reply.status_code] += 1
                        served[reply.headers.get("x-llmtap-backend", "none")] += 1

            async def until_served_by_a() -> None:
                before = served["a"]
                async with asyncio.timeout(30):
                    while served["a"] < before + 5:
                        await asyncio.sleep(0.01)

            clients = [asyncio.create_task(client()) for _ in range(8)]
            try:
                await until_served_by_a()
                first.kill()
                for _ in range(2):
                    async with running_sim_async(**fast, port=first.port) as again:
                        await until_served_by_a()
                        again.kill()
            finally:
                over.set()
                await asyncio.gather(*clients)
            assert set(statuses) == {200}, statuses
