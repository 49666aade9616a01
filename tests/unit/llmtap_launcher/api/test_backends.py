"""Backends by request."""

from __future__ import annotations

from pathlib import Path

from llmtap.core.config import Config
from support.fleet import running_fleet


async def test_added_changed_drained_and_removed(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        made = await client.post("/api/v1/backends", json={"url": "http://127.0.0.1:9", "models": ["m"], "api_key": "sk-secret"})
        assert made.status_code == 201 and "sk-secret" not in made.text
        row = made.json()
        assert (row["name"], row["models"], row["health"], row["process"]) == ("127.0.0.1:9", ["m"], "up", "remote")
        path = "/api/v1/backends/127.0.0.1:9"
        assert (await client.post("/api/v1/backends", json={"url": "http://127.0.0.1:9"})).status_code == 409
        changed = await client.patch(path, json={"max_concurrency": 3, "draining": True})
        assert (changed.json()["max_concurrency"], changed.json()["draining"]) == (3, True)
        key = bench.link.config.backends[0].api_key
        assert key is not None and key.get_secret_value() == "sk-secret"
        assert (await client.patch(path, json={"draining": False})).json()["draining"] is False
        assert (await client.get("/api/v1/backends")).json()["backends"] == [(await client.get(path)).json()]
        assert (await client.delete(path)).status_code == 204
        assert (await client.get(path)).status_code == (await client.delete(path)).status_code == 404


async def test_wrong_values_are_refused(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        await client.post("/api/v1/backends", json={"name": "a", "url": "http://127.0.0.1:9"})
        for body in (
            {"url": "http://h/v1"},
            {"url": "ftp://h"},
            {"name": "no spaces", "url": "http://h"},
            {"url": "http://h", "x": 1},
        ):
            assert (await client.post("/api/v1/backends", json=body)).status_code == 422, body
        for body in ({"max_concurrency": 0}, {"max_concurrency": None}, {"name": "b"}):
            assert (await client.patch("/api/v1/backends/a", json=body)).status_code == 422, body
        assert (await client.delete("/api/v1/backends/a?timeout_s=-1")).status_code == 422
        bench.link.refuses = "no room"
        refused = await client.post("/api/v1/backends", json={"url": "http://127.0.0.1:8"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_configuration")
