"""Filters on a running gateway: what the backend gets, and that both requests are captured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import running_gateway, wait_up
from support.sim import running_sim

pytestmark = pytest.mark.integration
MODEL, PATH = "sim-small", "/v1/chat/completions"
RULE = """
from llmtap.core.errors import Forbidden

def check(request, about):
    if any("forbidden word" in str(m.get("content")) for m in request["messages"]):
        raise Forbidden("that word is not for us", code="word_not_allowed")
    return {**request, "seed": len(request["messages"])}
"""


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 900, "logprobs": True, **more}


def test_filters_and_an_own_rule(tmp_path: Path) -> None:
    rule = tmp_path / "rules.py"
    rule.write_text(RULE)
    filters = [
        {"max_tokens": 6, "strip": ["logprobs"], "system_prompt": "Be kind.", "redact": {r"sk-\w+": "[key]"}},
        {"models": ["other"], "set": {"temperature": 2}},
        {"python": f"{rule}:check"},
    ]
    with running_sim(model=MODEL, ttft_ms=0) as sim:
        config = {"backends": [{"name": "a", "url": sim.url}], "filters": filters}
        with running_gateway(tmp_path, config) as gateway:
            wait_up(gateway)
            for stream in (False, True):
                reply = httpx.post(f"{gateway.url}{PATH}", json=chat("my key is sk-12345", stream=stream))
                assert reply.status_code == 200, reply.text
                got = json.loads(sim.requests(PATH)[-1]["body"])
                assert got["messages"] == [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "my key is [key]"},
                ]
                assert (got["max_tokens"], got["seed"]) == (6, 2) and "logprobs" not in got and "temperature" not in got
                begin, end = gateway.exchange(reply.headers["x-request-id"])
                assert begin["body"]["json"]["messages"] == [{"role": "user", "content": "my key is sk-12345"}]
                assert (
                    begin["forwarded"]["json"]["messages"] == got["messages"]
                    and "stream_options" not in begin["forwarded"]["json"]
                )
                assert end["outcome"] == "ok" and end["summary"]["usage"]["completion_tokens"] <= 6
            before = len(sim.requests(PATH))
            refused = httpx.post(f"{gateway.url}{PATH}", json=chat("a forbidden word"))
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "word_not_allowed"
            assert len(sim.requests(PATH)) == before


def test_a_rule_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    config = {"backends": [], "filters": [{"python": "nowhere.py:check"}]}
    with running_gateway(tmp_path, config, ready=False) as gateway:
        assert gateway.process.wait(timeout=60) == 1
    assert "filters[0].python: nowhere.py:check cannot be loaded" in "".join(gateway.output)
