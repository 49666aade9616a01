"""A gateway whose disk fills up, or whose data folder goes away, serves on, says so, and captures again when it can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import running_sim
from support.wait import eventually

pytestmark = pytest.mark.faults
CHAT = "/v1/chat/completions"


def ask(gateway: Gateway, prompt: str) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "stream": True}
    return httpx.post(f"{gateway.url}{CHAT}", json=body)


def config(url: str, **capture: Any) -> dict[str, Any]:
    return {"backends": [{"name": "a", "url": url}], "capture": capture}


def test_a_full_spool_drops_in_steps_and_serves_on(tmp_path: Path) -> None:
    with (
        running_sim(model="m", tokens_per_second=0, ttft_ms=0) as sim,
        running_gateway(tmp_path, config(sim.url, max_spool_gb=0.0002)) as gateway,
    ):
        wait_up(gateway)
        for i in range(40):
            assert ask(gateway, f"{i} " + "word " * 2000).status_code == 200
        eventually(lambda: gateway.metric("llmtap_capture_dropped_total") > 0, "nothing is counted as dropped")
        size = sum(p.stat().st_size for p in (tmp_path / "spool").iterdir())
        assert size < 220_000
        # the writer takes what is there: room again
        for path in (tmp_path / "spool").glob("*.jsonl"):
            path.unlink()

        def captured_again() -> bool:
            uid = ask(gateway, "room again").headers["x-request-id"]
            return any(r.get("uid") == uid and "body" in r for r in gateway.records())

        eventually(captured_again, "it does not recover")
        assert any(r["t"] == "gap" and r["dropped"] for r in gateway.records()), "the gap is not stated"


def test_a_data_folder_that_is_deleted_comes_back(tmp_path: Path) -> None:
    with running_sim(model="m", tokens_per_second=0, ttft_ms=0) as sim, running_gateway(tmp_path, config(sim.url)) as gateway:
        wait_up(gateway)
        assert ask(gateway, "before").status_code == 200
        shutil.rmtree(tmp_path / "spool")

        def captured_again() -> bool:
            reply = ask(gateway, "after")
            assert reply.status_code == 200
            return any(r.get("uid") == reply.headers["x-request-id"] for r in gateway.records())

        eventually(captured_again, "it does not recover")


def test_required_capture_refuses_rather_than_forgets(tmp_path: Path) -> None:
    with (
        running_sim(model="m", tokens_per_second=0, ttft_ms=0) as sim,
        running_gateway(tmp_path, config(sim.url, required=True, max_spool_gb=0.00002)) as gateway,
    ):
        wait_up(gateway)
        replies = [ask(gateway, f"{i} " + "word " * 1000) for i in range(12)]
        refused = [r for r in replies if r.status_code == 503]
        assert replies[0].status_code == 200 and refused
        assert refused[0].json()["error"]["code"] == "capture_unavailable" and refused[0].headers["retry-after"]
        reached = len(sim.requests(CHAT))
        assert reached == len(replies) - len(refused), "a refused request reached the engine"
