"""Budgets on a running gateway with its writer: spent, refused, and remembered after kill -9."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
MODEL, SECRET = "sim-small", "secret-a"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "what does it cost"}], "max_tokens": 20}
PRICE = {"model": MODEL, "input_usd_per_million": 0, "output_usd_per_million": 1000}  # a thousandth of a dollar a token


def config(sim: SimHandle, budget: float = 0.1) -> dict[str, Any]:
    key = {"name": "a", "key_sha256": sha256(SECRET.encode()).hexdigest(), "budget_usd": budget}
    other = {"name": "b", "key_sha256": sha256(b"secret-b").hexdigest()}
    return {
        "backends": [{"name": "a", "url": sim.url}],
        "auth": {"enabled": True, "keys": [key, other]},
        "prices": [PRICE],
    }


def ask(gateway: Gateway, secret: str = SECRET, **more: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT | more, headers={"authorization": f"Bearer {secret}"})


def cost(gateway: Gateway) -> float:
    families = httpx.get(f"{gateway.url}/internal/metrics", headers={"authorization": "Bearer secret-b"}).json()
    return sum(s["value"] for f in families.values() for s in f["samples"] if s["name"] == "llmtap_cost_usd_total")


def test_spent_refused_and_remembered(tmp_path: Path) -> None:
    with running_sim(model=MODEL, ttft_ms=0, tokens_per_second=5000) as sim:
        with running_gateway(tmp_path, config(sim), writer=True) as gateway:
            wait_up(gateway)
            tokens = 0
            while (reply := ask(gateway)).status_code == 200:
                tokens += reply.json()["usage"]["completion_tokens"]
                assert tokens < 200
            assert reply.status_code == 429 and reply.json()["error"]["code"] == "budget_exceeded"
            assert int(reply.headers["retry-after"]) > 0
            # set aside are 20 tokens for each; nothing more is spent than the last one let in
            assert 80 < tokens <= 120
            assert cost(gateway) == pytest.approx(tokens / 1000)
            assert ask(gateway, "secret-b").status_code == 200

            def ingested() -> bool:
                database = f"file:{tmp_path / 'capture.db'}?mode=ro"
                with suppress(sqlite3.OperationalError), closing(sqlite3.connect(database, uri=True)) as db:
                    rows = db.execute("SELECT sum(cost_nanousd) FROM usage_daily WHERE key_name = 'a'").fetchone()
                    return bool(rows[0] == tokens * 1_000_000)
                return False  # the writer has only begun

            eventually(ingested, "the store does not agree on the cost")
            gateway.stop(signal.SIGKILL)
        with running_gateway(tmp_path, config(sim), writer=True) as again:
            wait_up(again)
            assert ask(again).status_code == 429
        with running_gateway(tmp_path, config(sim, budget=5), writer=True) as richer:
            wait_up(richer)
            assert ask(richer).status_code == 200


def test_a_stream_that_is_left_is_charged_for_what_it_produced(tmp_path: Path) -> None:
    with running_sim(model=MODEL, ttft_ms=0, tokens_per_second=50) as sim, running_gateway(tmp_path, config(sim)) as gateway:
        wait_up(gateway)
        headers = {"authorization": f"Bearer {SECRET}"}
        body = CHAT | {"stream": True, "max_tokens": 60}
        with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as reply:
            lines = reply.iter_lines()
            for _ in range(30):
                next(lines)
        spent = eventually(lambda: cost(gateway), "nothing charged")
        assert 0.005 < spent < 0.06
