"""A small HTTP/1.1 load generator on asyncio: keep-alive connections, one request at a time each, a fixed number of requests.

It measures what a client sees: whole-request latency, time to the first body byte, bytes and pieces received.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import httptools


@dataclass
class Result:
    """Times are seconds."""

    latencies: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)
    pieces: int = 0
    wall: float = 0.0
    failures: int = 0

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.wall if self.wall else 0.0

    def quantile(self, values: list[float], q: float) -> float:
        ordered = sorted(values)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")

    @property
    def p50(self) -> float:
        return statistics.median(self.latencies) if self.latencies else float("nan")

    @property
    def ttfb50(self) -> float:
        return statistics.median(self.first_bytes) if self.first_bytes else float("nan")


class _Reply:
    """llhttp callbacks of one response."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.pieces = 0
        self.done = False

    def on_body(self, data: bytes) -> None:
        if self.first is None:
            self.first = time.perf_counter()
        self.pieces += 1

    def on_message_complete(self) -> None:
        self.done = True


async def _worker(port: int, request: bytes, todo: list[int], result: Result) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while todo:
            todo.pop()
            reply = _Reply()
            parser = httptools.HttpResponseParser(reply)
            start = time.perf_counter()
            writer.write(request)
            while not reply.done:
                data = await reader.read(65536)
                if not data:
                    result.failures += 1
                    return
                parser.feed_data(data)
            if parser.get_status_code() != 200:
                result.failures += 1
                continue
            result.latencies.append(time.perf_counter() - start)
            if reply.first is not None:
                result.first_bytes.append(reply.first - start)
            result.pieces += reply.pieces
    finally:
        writer.close()


async def run(port: int, path: str, body: bytes, requests: int, concurrency: int) -> Result:
    """Send `requests` POSTs of `body` over `concurrency` connections."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    result = Result()
    todo = list(range(requests))
    start = time.perf_counter()
    await asyncio.gather(*(_worker(port, head.encode() + body, todo, result) for _ in range(concurrency)))
    result.wall = time.perf_counter() - start
    return result
