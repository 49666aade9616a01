"""What is asked of every target, and what of it is put into the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHORT, FULL = "short", "full"


@dataclass(frozen=True)
class Scenario:
    """`job`: fields of `load.Job`. `shown`: (label, metric, unit) of its rows in the table, `metric` a path in the result."""

    key: str
    title: str
    job: dict[str, Any]
    shown: tuple[tuple[str, str, str], ...]
    seconds: dict[str, float] = field(default_factory=lambda: {SHORT: 0.6, FULL: 3.0})
    rounds: dict[str, int] = field(default_factory=lambda: {SHORT: 3, FULL: 3})
    #: targets left out of a short run: they need many seconds to recover from it
    slow: frozenset[str] = frozenset()


P50, P99 = ("p50", "latency.p50", "us"), ("p99", "latency.p99", "us")
CPU = ("CPU a request", "cpu_per_request", "us")
TTFT = ("TTFT p50", "ttft.p50", "us"), ("TTFT p99", "ttft.p99", "us")
STREAMS = (
    ("delivered", "delivered", "%"),
    ("one-way p50", "oneway.p50", "us"),
    ("one-way p99", "oneway.p99", "us"),
    ("CPU a chunk", "cpu_per_chunk", "us"),
)
SLOW = frozenset({"stock", "mitmdump", "litellm"})

SCENARIOS = (
    Scenario("plain1", "plain, c=1", {"connections": 1}, (P50, P99, CPU)),
    Scenario("plain32", "plain, c=32", {"connections": 32}, (("requests/s", "per_second", "/s"), P50, P99, CPU)),
    Scenario(
        "ttft",
        "first token, c=1",
        {"connections": 1, "stream": True, "tokens": 64},
        TTFT,
    ),
    Scenario(
        "ttft_paced",
        "the same, 1 ms a token",
        {"connections": 1, "stream": True, "tokens": 4, "delay_us": 1000},
        TTFT,
    ),
    Scenario(
        "streams1000",
        "1000 streams x 20/s",
        {"connections": 1000, "stream": True, "tokens": 600, "delay_us": 50_000, "warm": 0.7, "ramp": 400.0},
        STREAMS,
        {SHORT: 1.5, FULL: 4.0},
        slow=SLOW,
    ),
    Scenario(
        "streams4000",
        "4000 streams x 5/s",
        {"connections": 4000, "stream": True, "tokens": 200, "delay_us": 200_000, "warm": 1.0, "ramp": 400.0},
        STREAMS,
        {SHORT: 1.5, FULL: 4.0},
        {SHORT: 2, FULL: 3},
        slow=SLOW,
    ),
    Scenario(
        "saturation",
        "saturation, c=32",
        {"connections": 32, "stream": True, "tokens": 128},
        (("chunks/s", "chunks_per_second", "/s"), ("CPU a chunk", "cpu_per_chunk", "us")),
    ),
    Scenario("prompt", "250 KB prompt, c=4", {"connections": 4, "prompt_bytes": 250_000}, (P50, CPU)),
    Scenario(
        "connect",
        "a connection each, c=8",
        {"connections": 8, "new_connections": True},
        (("requests/s", "per_second", "/s"), CPU),
    ),
    Scenario(
        "abort",
        "client leaves, c=8",
        {"connections": 8, "stream": True, "tokens": 64, "delay_us": 5000, "abort": True},
        (
            ("upstream closed p50", "abort.p50", "us"),
            ("upstream closed p99", "abort.p99", "us"),
            ("not closed in 2 s", "abort.missing", ""),
        ),
        {SHORT: 0.8, FULL: 3.0},
    ),
)
#: memory: so many mixed requests (plain, streamed, 20 KB) after a warm-up of a fifth as many; the lane only
MEMORY = {SHORT: 0, FULL: 100_000}
