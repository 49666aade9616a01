from __future__ import annotations

import asyncio

from llmtap_launcher.sim.faults import parse_rule
from llmtap_launcher.sim.simulation import RequestLog, Settings, Simulation, is_outage


def test_the_log_keeps_the_last() -> None:
    log = RequestLog(keep=3)
    for n in range(5):
        log.open("GET", f"/{n}", "", {}, "")
    assert [(s.id, s.path) for s in log.list()] == [(3, "/2"), (4, "/3"), (5, "/4")]
    assert [s.path for s in log.list("/3")] == ["/3"]
    log.clear()
    assert log.list() == []


def test_an_outage_is_an_unconditional_refusal() -> None:
    assert is_outage(parse_rule("refuse"))
    assert is_outage(parse_rule("refuse=2"))
    assert not is_outage(parse_rule("refuse:3"))
    assert not is_outage(parse_rule("refuse:0.5"))
    assert not is_outage(parse_rule("stall"))


async def test_an_outage_goes_to_the_server_and_other_rules_to_the_requests() -> None:
    settings = Settings(rules=(parse_rule("refuse"), parse_rule("http_500")))
    sim = Simulation.create(settings, asyncio.get_running_loop())
    assert [r.fault.kind for r in sim.rules.list()] == ["http_500"]
    calls: list[object] = []
    sim.refuse, sim.accept = calls.append, lambda: calls.append("accept")
    sim.add_rule(parse_rule("refuse=2"))
    sim.add_rule(parse_rule("stall"))
    assert calls == [2.0]
    assert len(sim.rules.list()) == 2
    sim.reset()
    assert calls == [2.0, "accept"]
    assert sim.rules.list() == []


async def test_without_a_server_going_offline_is_nothing() -> None:
    sim = Simulation.create(Settings(), asyncio.get_running_loop())
    sim.refuse(1.0)
    sim.accept()
    assert not sim.refusing
