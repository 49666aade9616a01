"""How many streams one simulated engine serves on one core: `python tests/bench/sim_streams.py [STREAMS] [TOKENS]`.

Sim on core 0, client on core 1 (as far as there are two). Prints tokens a second asked for and delivered, the sim's CPU share,
and the lateness of the slowest stream.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.sim import running_sim


class Client(asyncio.Protocol):
    """One streaming request over a socket of its own; counts events by their ends, without parsing."""

    def __init__(self, request: bytes, done: asyncio.Future[float]) -> None:
        self.request, self.done, self.events, self.first = request, done, 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.first = self.first or time.perf_counter()
        self.events += data.count(b"data: {")
        if data.endswith(b"0\r\n\r\n"):
            self.done.set_result(time.perf_counter())
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the stream broke off"))


async def load(port: int, streams: int, tokens: int) -> tuple[int, float, float]:
    """Events received, seconds from first to last, seconds of the slowest stream."""
    loop = asyncio.get_running_loop()
    clients = []
    began = time.perf_counter()
    for n in range(streams):
        message = {"role": "user", "content": f"[[sim:tokens={tokens}]] number {n}"}
        body = json.dumps({"messages": [message], "stream": True, "max_tokens": tokens}).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            "Host: x",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        head = "\r\n".join([*lines, "", ""])
        done: asyncio.Future[float] = loop.create_future()
        client = Client(head.encode() + body, done)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
        clients.append(client)
    ends = await asyncio.gather(*(client.done for client in clients))
    slowest = max(end - client.first for end, client in zip(ends, clients, strict=True))
    return sum(c.events for c in clients), max(ends) - began, slowest


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    streams, tokens = (int(a) for a in (sys.argv[1:] + ["300", "1000"][len(sys.argv) - 1 :])[:2])
    cores = sorted(os.sched_getaffinity(0))
    with running_sim(ttft_ms=20, tokens_per_second=float(os.environ.get("RATE", "100"))) as sim:
        os.sched_setaffinity(sim.pid, {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        before = cpu_seconds(sim.pid)
        events, wall, slowest = asyncio.run(load(sim.port, streams, tokens))
        cpu = cpu_seconds(sim.pid) - before
    print(f"{streams} streams x {tokens} tokens: {events} events in {wall:.2f} s = {events / wall:,.0f}/s")
    print(f"sim CPU {cpu:.2f} s = {100 * cpu / wall:.0f}% of a core, {1e6 * cpu / events:.1f} us an event")
    print(f"slowest stream {slowest:.2f} s")


if __name__ == "__main__":
    main()
