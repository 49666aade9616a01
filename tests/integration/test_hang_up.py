"""A client that hangs up as soon as it has its tool call, through a running gateway: captured, counted, the engine stopped."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from support.gateway import running_gateway, wait_up
from support.sim import running_sim
from support.wait import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BODY = {
    "model": "sim-small",
    "messages": [{"role": "user", "content": "What is the weather in Paris, London, Rome, Oslo and Bern?"}],
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}],
    "stream": True,
}


def test_hanging_up_right_after_a_function_call(tmp_path: Path) -> None:
    with (
        running_sim(tokens_per_second=30, ttft_ms=1) as sim,
        running_gateway(tmp_path, {"backends": [{"name": "a", "url": sim.url}]}) as gateway,
    ):
        wait_up(gateway)
        seen = b""
        with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=BODY, timeout=30) as reply:
            uid = reply.headers["x-request-id"]
            pieces = reply.iter_raw()
            while b"Paris" not in seen or seen.count(b'"index":1') == 0:  # the first call is there, the second begins
                seen += next(pieces)
        _, end = gateway.exchange(uid)
        assert end["outcome"] == "client_abort"
        made = end["summary"]["choices"][0]["tool_calls"]
        assert (made[0]["name"], json.loads(made[0]["arguments"])) == ("get_weather", {"city": "Paris"})
        usage = end["summary"]["usage"]
        assert usage["source"] == "estimated" and usage["completion_tokens"] >= 5 and usage["prompt_tokens"] > 20
        eventually(lambda: sim.state()["running"] == 0 and sim.state()["aborted"] == 1, "the engine still generates")
        assert gateway.metric("llmtap_generation_tokens_total") == usage["completion_tokens"]
        assert gateway.metric("llmtap_requests_total", outcome="client_abort") == 1
