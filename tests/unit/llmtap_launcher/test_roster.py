"""Backends that rest and return, by hand, by the clock and by request; the engines are real, the gateway is played."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmtap.core.config import Backend, Config
from llmtap_launcher.fleet import Conflict, Unknown
from llmtap_launcher.process import ProcessFailed
from support.fleet import running_fleet, sims
from support.wait import eventually_async


def remote(name: str = "r") -> Backend:
    return Backend(name=name, url="http://127.0.0.1:9")


async def test_of_a_group_one_runs(tmp_path: Path) -> None:
    async with running_fleet(
        tmp_path, sims({"name": "a", "model": "m1", "group": "g"}, {"name": "b", "model": "m2", "group": "g"})
    ) as bench:
        assert bench.supervisor.plan.lazy == {"b"}
        a, b = bench.fleet.members.values()
        assert bench.link.picture["a"]["starts_within_s"] > 900
        await bench.fleet.bring(a)
        assert bench.link.picture == {"a": {"draining": False}, "b": bench.link.picture["b"]} and b.state == "stopped"
        bench.link.load["a"] = [1, 0.0]
        bench.link.on_wanted("b")
        bench.link.on_wanted("b")
        await eventually_async(lambda: bench.link.picture["a"].get("stopped") is True, "a gets requests still")
        assert a.state == "ready" and b.state == "stopped"  # its request runs on
        bench.link.load.clear()
        await eventually_async(lambda: b.state == "ready" and bench.link.picture["b"] == {"draining": False}, "b does not start")
        assert a.state == "stopped" and bench.link.picture["a"]["starts_within_s"] > 900


async def test_requests_that_do_not_end_hold_up_nobody_for_ever(tmp_path: Path) -> None:
    config = sims(
        {"name": "a", "model": "m1", "group": "g"}, {"name": "b", "model": "m2", "group": "g"}, server={"drain_timeout_s": 0.2}
    )
    async with running_fleet(tmp_path, config) as bench:
        a, b = bench.fleet.members.values()
        await bench.fleet.bring(a)
        bench.link.load["a"] = [1, 0.0]
        await bench.fleet.bring(b)
        assert (a.state, b.state) == ("stopped", "ready") and any("still running" in line for line in bench.lines)


async def test_unused_it_stops_and_a_request_brings_it_back(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m", "ttl_s": 0.4})) as bench:
        (a,) = bench.fleet.members.values()
        await bench.fleet.bring(a)
        bench.link.load["a"] = [1, 0.0]
        bench.link.asked.clear()
        await eventually_async(lambda: bench.link.asked.count("load") > 6, "nobody looks at the load")
        assert a.state == "ready"  # it is used
        bench.link.load["a"] = [0, 1.0]
        await eventually_async(lambda: a.state == "stopped", "it runs on unused")
        assert bench.link.picture["a"]["stopped"] and any("unused for 0.4 s" in line for line in bench.lines)
        bench.link.on_wanted("a")
        await eventually_async(lambda: bench.link.picture["a"] == {"draining": False}, "it does not come back")


async def test_a_server_that_can_sleep_sleeps(tmp_path: Path) -> None:
    async with running_fleet(
        tmp_path, sims({"name": "a", "model": "m", "ttl_s": 60, "args": {"enable-sleep-mode": True}})
    ) as bench:
        (a,) = bench.fleet.members.values()
        await bench.fleet.bring(a)
        assert a.process is not None
        pid = a.process.pid
        await bench.fleet.rest(a, resumes=True)
        assert a.state == "asleep" and not a.runs and bench.link.picture["a"]["stopped"]
        await bench.fleet.bring(a)
        assert a.state == "ready" and a.process.pid == pid and bench.link.picture["a"] == {"draining": False}
        await bench.fleet.rest(a, resumes=True)
        a.process.kill()
        await eventually_async(lambda: not a.asleep, "a dead one counts as asleep")
        await eventually_async(lambda: a.state == "stopped", "it starts again, awake")
        await bench.fleet.bring(a)
        assert a.state == "ready" and a.process.pid != pid


async def test_stopped_by_hand_it_stays_so(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m", "ttl_s": 60})) as bench:
        (a,) = bench.fleet.members.values()
        await bench.fleet.bring(a)
        await bench.fleet.rest(a, resumes=False)
        assert bench.link.picture["a"]["starts_within_s"] is None
        bench.link.on_wanted("a")
        await bench.fleet.set_draining("a", True)
        assert a.state == "stopped"
        await bench.fleet.bring(a)
        assert a.state == "ready" and a.resumes


async def test_a_start_on_demand_that_fails_is_not_waited_for(tmp_path: Path) -> None:
    async with running_fleet(
        tmp_path, sims({"name": "a", "model": "m", "ttl_s": 60, "args": {"nosuch": 1}, "startup_timeout_s": 20})
    ) as bench:
        bench.link.on_wanted("a")
        await eventually_async(lambda: bench.state("a") == "failed", "it tries for ever", timeout_s=30)
        await eventually_async(lambda: "exited" in str(bench.link.picture["a"].get("reason")), "the gateway is not told")
        assert bench.link.picture["a"]["starts_within_s"] is None


async def test_one_the_gateway_does_not_see_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap_launcher.roster.SEEN_S", 0.2)
    async with running_fleet(tmp_path, Config()) as bench:
        bench.link.sick.add("r")
        assert not await bench.fleet.seen(await bench.fleet.add(remote()))


def test_unknown_names_and_models(tmp_path: Path) -> None:
    async def look() -> None:
        async with running_fleet(tmp_path, sims({"name": "a", "model": "m"})) as bench:
            assert bench.fleet.launched("m") == [bench.fleet.member("a")]
            with pytest.raises(Unknown):
                bench.fleet.launched("other")
            await bench.fleet.add(remote())
            with pytest.raises(Conflict):
                await bench.fleet.bring(bench.fleet.member("r"))

    asyncio.run(look())


async def test_one_that_is_starting_is_stopped_at_once(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m"})) as bench:
        (a,) = bench.fleet.members.values()
        bringing = asyncio.create_task(bench.fleet.bring(a))
        await eventually_async(lambda: a.state == "starting", "it does not start")
        await bench.fleet.rest(a, resumes=False)
        with pytest.raises(ProcessFailed):
            await bringing
        assert a.state == "stopped" and bench.link.picture["a"]["reason"] == "stopped by an operator"


async def test_one_that_is_gone_is_not_started_by_who_waited_for_it(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m"})) as bench:
        a = bench.fleet.member("a")
        del bench.fleet.members["a"]
        with pytest.raises(ProcessFailed, match="stopped"):
            await bench.fleet.bring(a)
        assert a.state == "stopped"


async def test_a_request_does_not_start_what_was_stopped_by_hand_meanwhile(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m", "ttl_s": 60})) as bench:
        a = bench.fleet.member("a")
        await bench.fleet.rest(a, resumes=False)
        await bench.fleet.bring(a, on_demand=True)
        assert a.state == "stopped"


async def test_nothing_starts_any_more_once_it_is_closed(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, sims({"name": "a", "model": "m"})) as bench:
        await bench.fleet.close()
        with pytest.raises(Conflict, match="stopping"):
            await bench.fleet.bring(bench.fleet.member("a"))
        assert bench.state("a") == "stopped"
