"""`make bench`: what the gateway costs, as ratios against the same simulated engine asked directly in the same run.

Alternating rounds (direct, gateway, direct, gateway ...), medians over the rounds. Absolute numbers depend on the
machine; the ratios are what to compare before and after a change.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "addons"), str(HERE.parents[2] / "launcher"), str(HERE.parents[1]), str(HERE.parent)]

import load  # noqa: E402

from support.gateway import running_gateway, wait_up  # noqa: E402
from support.sim import running_sim  # noqa: E402

CHAT = "/v1/chat/completions"


def body(stream: bool, prompt: str = "bench", tokens: int = 32) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"model": "sim", "messages": messages, "max_tokens": tokens, "stream": stream}).encode()


SCENARIOS: dict[str, tuple[bytes, int, int]] = {
    # name: body, requests a round, connections
    "plain c=1": (body(False, tokens=1), 150, 1),
    "plain c=16": (body(False, tokens=1), 400, 16),
    "stream c=1": (body(True), 60, 1),
    "stream c=16": (body(True), 160, 16),
    "250 kB prompt c=1": (body(False, "word " * 50_000, 1), 20, 1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    rounds = parser.parse_args().rounds
    fast = {"tokens_per_second": 0, "ttft_ms": 0, "max_model_len": 1_000_000}
    with tempfile.TemporaryDirectory() as folder, running_sim(model="sim", **fast) as sim:
        config = {"backends": [{"name": "a", "url": sim.url}]}
        with running_gateway(Path(folder), config) as gateway:
            wait_up(gateway)
            rows = [measure(name, sim.port, gateway.port, rounds) for name in SCENARIOS]
    width = max(len(r["scenario"]) for r in rows)
    print(f"{'scenario':{width}}  {'direct':>10}  {'gateway':>10}  {'ratio':>6}  {'added p50':>10}  {'ttfb added':>10}")
    for r in rows:
        print(
            f"{r['scenario']:{width}}  {r['direct']:>8.0f}/s  {r['gateway']:>8.0f}/s  {r['ratio']:>5.2f}x"
            f"  {r['added_ms']:>7.2f} ms  {r['ttfb_added_ms']:>7.2f} ms"
        )
    return 0


def measure(name: str, direct_port: int, gateway_port: int, rounds: int) -> dict[str, object]:
    """Requests per second of both, their ratio (gateway / direct) and the median latency the gateway adds."""
    payload, requests, connections = SCENARIOS[name]
    results: dict[str, list[load.Result]] = {"direct": [], "gateway": []}
    for port in (direct_port, gateway_port):
        asyncio.run(load.run(port, CHAT, payload, max(4, requests // 10), connections))  # warm up
    for _ in range(rounds):
        for kind, port in (("direct", direct_port), ("gateway", gateway_port)):
            result = asyncio.run(load.run(port, CHAT, payload, requests, connections))
            assert result.failures == 0, f"{name}: {result.failures} requests failed against {kind}"
            results[kind].append(result)
    rate = {kind: statistics.median(r.per_second for r in rs) for kind, rs in results.items()}
    p50 = {kind: statistics.median(r.p50 for r in rs) for kind, rs in results.items()}
    ttfb = {kind: statistics.median(r.ttfb50 for r in rs) for kind, rs in results.items()}
    return {
        "scenario": name,
        "direct": rate["direct"],
        "gateway": rate["gateway"],
        "ratio": rate["gateway"] / rate["direct"],
        "added_ms": (p50["gateway"] - p50["direct"]) * 1000,
        "ttfb_added_ms": (ttfb["gateway"] - ttfb["direct"]) * 1000,
    }


if __name__ == "__main__":
    sys.exit(main())
