"""Status, reload, requests in flight."""

from __future__ import annotations

from pathlib import Path

from llmtap.core.config import Config
from support.fleet import running_fleet, sims

REQUEST = {
    "id": "01A",
    "request_id": None,
    "endpoint": "chat",
    "path": "/v1/chat/completions",
    "model": "m",
    "backend": "a",
    "key": None,
    "client": "127.0.0.1",
    "stream": True,
    "state": "replying",
    "age_s": 1.0,
    "queue_s": 0.0,
    "attempts": 1,
    "reply_bytes": 10,
}


async def test_status_puts_it_all_together(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m"})) as bench, bench.client() as client:
        found = (await client.get("/api/v1/status")).json()
    assert (found["in_flight"], found["waiting"], found["data"]) == (2, 1, "d")
    assert [(b["name"], b["health"], b["process"], b["engine"]) for b in found["backends"]] == [("a", "up", "stopped", "sim")]


async def test_reload(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        bench.reloads = ["capture"]
        assert (await client.post("/api/v1/reload")).json() == {"reloaded": True, "waits_for_restart": ["capture"]}
        bench.reloads = None
        answer = await client.post("/api/v1/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_configuration_file")


async def test_requests_in_flight_are_listed_oldest_first_and_ended(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        bench.link.requests = [REQUEST, {**REQUEST, "id": "01B", "age_s": 9.0}]
        listed = (await client.get("/api/v1/inflight")).json()["requests"]
        assert [request["id"] for request in listed] == ["01B", "01A"]
        assert (await client.get("/api/v1/inflight/01A")).json() == REQUEST
        for method, path in (("DELETE", "/api/v1/inflight/01A"), ("POST", "/api/v1/inflight/01A/cancel")):
            assert (await client.request(method, path)).json() == {"cancelled": "01A"}
        for method in ("GET", "DELETE"):
            answer = await client.request(method, "/api/v1/inflight/zzz")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")
