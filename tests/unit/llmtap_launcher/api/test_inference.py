"""Engines by request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.config import Config
from llmtap_launcher.api.inference import launch_of, name_for
from llmtap_launcher.api.shapes import Up
from support.fleet import running_fleet, sims
from support.wait import eventually_async


def test_names_are_made_of_the_models() -> None:
    assert name_for("Qwen/Qwen2.5-1.5B-Instruct", ()) == "Qwen2.5-1.5B-Instruct"
    assert name_for("m", {"m", "m-2"}) == "m-3"
    assert name_for("/srv/models/my model/", ()) == "my-model"
    assert name_for("///", ()) == "model" and len(name_for("x" * 500, ())) <= 64


def test_dtype_is_a_flag() -> None:
    assert launch_of(Up(model="m", dtype="float32", args={"seed": 1})).args == {"dtype": "float32", "seed": 1}


async def test_up_and_down(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        wish = {"model": "org/m", "engine": "sim", "args": {"seed": 1}, "max_concurrency": 9}
        first, second = await asyncio.gather(*(client.post("/api/v1/inference/up", json=wish) for _ in range(2)))
        assert first.status_code == second.status_code == 200, (first.text, second.text)
        row = first.json()["backend"]
        assert (row["name"], row["process"], row["health"], row["origin"], row["max_concurrency"]) == (
            "m",
            "ready",
            "up",
            "api",
            9,
        )
        assert len(bench.supervisor.backends) == 1
        other = await client.post("/api/v1/inference/up", json={**wish, "args": {"seed": 2}})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
        assert (await client.post("/api/v1/inference/down", json={"model": "org/m"})).json() == {"stopped": ["m"]}
        assert bench.supervisor.backends == [] and bench.link.served == []
        assert (await client.post("/api/v1/inference/down", json={"model": "org/m"})).status_code == 404


async def test_what_fails_says_its_last_words(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        answer = await client.post("/api/v1/inference/up", json={"model": "m", "engine": "sim", "args": {"nosuch": True}})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "engine_failed")
        assert any("--nosuch" in line for line in error["log"])


async def test_two_that_wish_for_what_fails_are_both_told_and_nothing_stays(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        wish = {"model": "m", "engine": "sim", "args": {"nosuch": True}}
        answers = await asyncio.gather(*(client.post("/api/v1/inference/up", json=wish) for _ in range(3)))
        assert [answer.json()["error"]["code"] for answer in answers] == ["engine_failed"] * 3
        assert bench.fleet.members == {} and bench.supervisor.backends == []
        assert all("--nosuch" in "".join(answer.json()["error"]["log"]) for answer in answers)


async def test_one_that_serves_is_not_taken_down_because_the_gateway_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtap_launcher.roster.SEEN_S", 0.2)
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        wish = {"model": "m", "engine": "sim"}
        assert (await client.post("/api/v1/inference/up", json=wish)).status_code == 200
        bench.link.sick.add("m")
        assert (await client.post("/api/v1/inference/up", json=wish)).status_code == 422
        assert bench.state("m") == "ready"


async def test_one_the_gateway_cannot_use_has_not_come_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap_launcher.roster.SEEN_S", 0.2)
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        bench.link.sick.add("m")
        answer = await client.post("/api/v1/inference/up", json={"model": "m", "engine": "sim"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "engine_failed")
        assert bench.fleet.members == {}


async def test_others_are_answered_meanwhile(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        up = asyncio.create_task(client.post("/api/v1/inference/up", json={"model": "m", "engine": "sim"}))
        await eventually_async(lambda: "m" in bench.fleet.members, "nothing starts")
        listed = (await client.get("/api/v1/backends")).json()["backends"]
        assert not up.done() and [(b["name"], b["health"], b["process"]) for b in listed] == [("m", None, "starting")]
        assert (await up).status_code == 200


@pytest.mark.parametrize("body", [{}, {"name": "a", "model": "m"}])
async def test_down_wants_either_name_or_model(tmp_path: Path, body: dict[str, Any]) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        assert (await client.post("/api/v1/inference/down", json=body)).status_code == 422


async def test_one_of_the_configuration_is_stopped_loaded_and_unloaded(tmp_path: Path) -> None:
    config = sims({"name": "a", "model": "m"}, {"name": "b", "model": "n", "ttl_s": 60})
    async with running_fleet(tmp_path, config) as bench, bench.client() as client:
        assert (await client.post("/api/v1/models/load", json={"model": "m"})).json()["backend"]["process"] == "ready"
        # what the configuration started is what is wished for
        assert (await client.post("/api/v1/inference/up", json={"model": "m", "engine": "sim"})).json()["backend"]["name"] == "a"
        assert (await client.post("/api/v1/inference/down", json={"name": "a"})).json() == {"stopped": ["a"]}
        assert bench.link.picture["a"]["starts_within_s"] is None and "a" in bench.link.served
        assert (await client.post("/api/v1/models/load", json={"model": "n"})).status_code == 200
        assert (await client.post("/api/v1/models/unload", json={"model": "n"})).json() == {"stopped": ["b"]}
        assert bench.link.picture["b"]["starts_within_s"] > 900
        assert (await client.post("/api/v1/models/load", json={"model": "zzz"})).status_code == 404


async def test_what_runs_by_itself_is_not_ours_to_stop(tmp_path: Path) -> None:
    config = Config.model_validate({"backends": [{"name": "r", "url": "http://127.0.0.1:9"}], "datasette": {"enabled": False}})
    async with running_fleet(tmp_path, config) as bench, bench.client() as client:
        answer = await client.post("/api/v1/inference/down", json={"name": "r"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_ours")
