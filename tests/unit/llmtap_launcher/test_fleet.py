"""Backends that come, go, rest and return while the launcher runs; the engines are real, the gateway is played."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.config import Backend, Config
from llmtap.core.errors import ConfigError
from llmtap_launcher.fleet import Conflict, Unknown
from llmtap_launcher.ports import free_ports
from llmtap_launcher.process import ProcessFailed
from support.fleet import running_fleet, sims
from support.wait import eventually_async


def sim(name: str, model: str = "m", **launch: Any) -> Backend:
    return Backend.model_validate({"name": name, "url": None, "launch": {"engine": "sim", "model": model, **launch}}).model_copy(
        update={"url": f"http://127.0.0.1:{free_ports(1)[0]}"}
    )


def remote(name: str = "r") -> Backend:
    return Backend(name=name, url="http://127.0.0.1:9")


async def test_one_that_runs_already_is_served_at_once_and_forgotten_again(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench:
        await bench.fleet.add(remote())
        assert bench.link.served == ["r"] and [b["name"] for b in bench.supervisor.state()["backends"]] == ["r"]
        with pytest.raises(Conflict):
            await bench.fleet.add(remote())
        await bench.fleet.remove("r")
        assert bench.link.served == [] and bench.fleet.members == {}
        with pytest.raises(Unknown):
            await bench.fleet.remove("r")


async def test_what_the_gateway_refuses_is_taken_back(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench:
        await bench.fleet.add(remote())
        bench.link.refuses = "no"
        with pytest.raises(ConfigError, match="no"):
            await bench.fleet.add(remote("other"))
        assert list(bench.fleet.members) == ["r"] and bench.link.served == ["r"]


async def test_an_engine_reaches_the_gateway_when_it_is_ready_and_not_before(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench:
        backend = sim("x")
        adding = asyncio.create_task(bench.fleet.add(backend))
        await eventually_async(lambda: "x" in bench.fleet.members and bench.state("x") == "starting", "it does not start")
        assert bench.link.served == []
        member = await adding
        assert bench.link.served == ["x"] and member.state == "ready" and await bench.fleet.seen(member)
        await bench.fleet.remove("x")
        assert bench.supervisor.backends == []


async def test_an_engine_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench:
        backend = sim("x", args={"nosuch": 1})
        with pytest.raises(ProcessFailed) as failure:
            await bench.fleet.add(backend)
        assert any("nosuch" in line for line in failure.value.tail)
        assert bench.fleet.members == {} and bench.supervisor.backends == [] and bench.link.served == []


async def test_one_that_is_stopped_while_it_starts(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench:
        backend = sim("x")
        adding = asyncio.create_task(bench.fleet.add(backend))
        await eventually_async(lambda: "x" in bench.fleet.members and bench.state("x") == "starting", "it does not start")
        await bench.fleet.remove("x")
        with pytest.raises(ProcessFailed, match="stopped"):
            await adding
        assert bench.fleet.members == {} and bench.link.served == []


async def test_other_settings_for_one_that_serves(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench:
        await bench.fleet.add(remote())
        await bench.fleet.change("r", remote().model_copy(update={"max_concurrency": 7}))
        assert bench.link.config.backends[0].max_concurrency == 7
        await bench.fleet.set_draining("r", True)
        assert bench.link.picture["r"] == {"draining": True}


async def test_a_reload_starts_what_is_new_and_stops_what_is_gone(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m1"}, {"name": "b", "model": "m2"})) as bench:
        a, b = bench.fleet.members.values()
        await bench.fleet.bring(a)
        await bench.fleet.bring(b)
        await bench.fleet.add(remote("by-api"))
        pid = a.process.pid if a.process is not None else None
        fresh = sims({"name": "c", "model": "m3"}, {"name": "a", "model": "m1"}, routing={"retries": 0}, queue={"max_waiting": 3})
        await bench.fleet.reload(fresh)
        assert bench.link.served == ["c", "a", "by-api"] and bench.link.config.queue.max_waiting == 3
        await eventually_async(lambda: bench.state("c") == "ready", "the new one does not start")
        await eventually_async(lambda: [p.name for p in bench.supervisor.backends] == ["a", "c"], "the old one runs on")
        assert list(bench.fleet.members) == ["c", "a", "by-api"]
        kept = bench.fleet.members["a"].process
        assert kept is not None and kept.pid == pid


async def test_a_reload_with_other_flags_starts_the_process_anew(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m1"})) as bench:
        (a,) = bench.fleet.members.values()
        await bench.fleet.bring(a)
        await bench.fleet.reload(sims({"name": "a", "model": "other"}))
        await eventually_async(lambda: bench.state("a") == "ready" and bench.fleet.members["a"] is not a, "no new process")
        assert bench.fleet.members["a"].backend.url == a.backend.url
        assert len(bench.supervisor.backends) == 1


async def test_a_reload_that_the_gateway_refuses_changes_nothing(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m1"})) as bench:
        bench.link.refuses = "auth.enabled: cannot be turned off"
        with pytest.raises(ConfigError, match="turned off"):
            await bench.fleet.reload(sims({"name": "z", "model": "m1"}))
        assert list(bench.fleet.members) == ["a"] and bench.link.served == ["a"]


async def test_requests_wait_while_one_is_started_anew(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m"})) as bench:
        await bench.fleet.bring(bench.fleet.member("a"))
        url = bench.fleet.member("a").backend.url
        bench.link.load["a"] = [1, 0.0]  # what runs at the old one ends first
        await bench.fleet.reload(sims({"name": "a", "model": "m", "args": {"seed": 2}}))
        assert bench.link.picture["a"]["stopped"] and bench.link.picture["a"]["starts_within_s"] > 900
        bench.link.on_wanted("a")
        bench.link.load.clear()
        await eventually_async(lambda: bench.link.picture["a"] == {"draining": False}, "the new one does not start")
        assert bench.state("a") == "ready" and bench.fleet.member("a").backend.url == url


async def test_ports_are_not_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[int]] = []
    monkeypatch.setattr("llmtap_launcher.fleet.free_ports", lambda count, avoid: asked.append(set(avoid)) or [1])
    async with running_fleet(tmp_path, Config()) as bench:
        await bench.fleet.add(remote())
        assert (bench.fleet.free_port(), asked) == (1, [{9}])


async def test_one_that_rests_stays_at_rest_when_its_settings_change(tmp_path: Path) -> None:
    before, after = ({"name": "a", "model": "m", "ttl_s": 60, "args": {"seed": n}} for n in (1, 2))
    async with running_fleet(tmp_path, sims(before)) as bench:
        first = bench.fleet.member("a")
        await bench.fleet.reload(sims(after))
        a = bench.fleet.member("a")
        await eventually_async(lambda: a.process is not None and not a.anew, "it has no process")
        assert a is not first and a.state == "stopped" and a.resumes
        await bench.fleet.rest(a, resumes=False)  # an operator stops it
        await bench.fleet.reload(sims(before))
        b = bench.fleet.member("a")
        await eventually_async(lambda: b.process is not None and not b.anew, "it has no process")
        await eventually_async(lambda: bench.link.picture["a"].get("reason") == "stopped by an operator", "it may be started")
        assert b.state == "stopped"
