"""Sleeping and paused engines: healthy, and silent."""

from __future__ import annotations

import asyncio

import pytest

from llmtap_launcher.sim.control import Rest
from support.asgi_sim import SimApp


async def test_it_rests_while_either_holds() -> None:
    rest = Rest()
    assert not rest.now
    rest.set(sleeping=True)
    rest.set(paused=True)
    rest.set(sleeping=False)
    assert rest.now
    rest.set(paused=False)
    assert not rest.now
    await rest.over()


@pytest.mark.parametrize(
    ("begin", "end", "asked", "member"),
    [("/sleep", "/wake_up", "/is_sleeping", "is_sleeping"), ("/pause", "/resume", "/is_paused", "is_paused")],
)
async def test_healthy_but_silent(begin: str, end: str, asked: str, member: str) -> None:
    app = SimApp(sleep_mode=True)
    assert (await app.request("GET", asked)).json() == {member: False}
    assert (await app.request("POST", begin)).status == 200
    assert (await app.request("GET", asked)).json() == {member: True}
    assert (await app.request("GET", "/health")).status == 200
    waiting = asyncio.ensure_future(app.chat("Hello"))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    await app.request("POST", end)
    assert (await asyncio.wait_for(waiting, 10)).status == 200


async def test_without_the_flag_the_routes_are_not_there() -> None:
    for path in ("/sleep", "/is_sleeping", "/pause", "/is_paused"):
        assert (await SimApp().request("GET", path)).status == 404
