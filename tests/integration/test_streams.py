"""Many streams at once come through byte for byte, and the gateway does not grow."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httptools
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import running_sim
from support.size import size

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
CHAT = "/v1/chat/completions"
STREAMS = 200
REQUESTS = size("LLMTAP_MEMORY_REQUESTS", 6000, 20000)


class Reply:
    """A response's body, by llhttp."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.done = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


async def ask(port: int, bodies: list[bytes]) -> list[bytes]:
    """Send the bodies one after the other over one connection; the reply bodies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    out = []
    try:
        for body in bodies:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            reply = Reply()
            parser = httptools.HttpResponseParser(reply)
            while not reply.done:
                data = await reader.read(1 << 16)
                assert data, "the connection was closed early"
                parser.feed_data(data)
            assert parser.get_status_code() == 200, bytes(reply.body[:200])
            out.append(bytes(reply.body))
    finally:
        writer.close()
        await writer.wait_closed()
    return out


def normal(body: bytes) -> list[object]:
    """A stream without ids and times."""
    events = [e.removeprefix(b"data: ") for e in body.split(b"\n\n")]
    return [
        e if not e.startswith(b"{") else {k: v for k, v in json.loads(e).items() if k not in ("id", "created")} for e in events
    ]


def chat(prompt: str, stream: bool, tokens: int) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"model": "m", "messages": messages, "stream": stream, "max_tokens": tokens}).encode()


async def test_200_concurrent_streams_are_what_the_engine_sent(tmp_path: Path) -> None:
    with (
        running_sim(model="m", tokens_per_second=20, ttft_ms=50) as sim,
        running_gateway(tmp_path, {"backends": [{"name": "a", "url": sim.url}]}) as gateway,
    ):
        wait_up(gateway)
        bodies = [chat(f"stream number {i}", True, 40) for i in range(STREAMS)]
        through = await asyncio.gather(*(ask(gateway.port, [body]) for body in bodies))
        direct = await asyncio.gather(*(ask(sim.port, [body]) for body in bodies))
        for (got,), (expected,) in zip(through, direct, strict=True):
            assert normal(got) == normal(expected)
        ends = [r for r in gateway.records() if r["t"] == "end"]
        assert len(ends) == STREAMS and {e["outcome"] for e in ends} == {"ok"}
        assert gateway.metric("llmtap_requests_running") == 0


def rss_kb(gateway: Gateway) -> int:
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def test_memory_is_flat(tmp_path: Path) -> None:
    """Streams and whole replies in turn, over 8 connections, no keep-alive for a tenth of them."""
    with (
        running_sim(model="m", tokens_per_second=0, ttft_ms=0) as sim,
        running_gateway(tmp_path, {"backends": [{"name": "a", "url": sim.url}], "logging": {"request_log": False}}) as gateway,
    ):
        wait_up(gateway)

        async def some(n: int) -> None:
            batch = [chat(f"request {i % 50}", i % 2 == 0, 4) for i in range(25)]
            for _ in range(n // (8 * 25)):
                await asyncio.gather(*(ask(gateway.port, batch) for _ in range(8)))

        await some(REQUESTS // 4)
        warm = rss_kb(gateway)
        await some(REQUESTS - REQUESTS // 4)
        grown = rss_kb(gateway) - warm
        print(f"RSS {warm} kB after {REQUESTS // 4} requests, {grown:+d} kB over the next {REQUESTS - REQUESTS // 4}")
        assert grown < 5_000
