"""Waiting for a request's body; on real connections it is in tests/integration/test_lane_http.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy.test import tflow

from llmtap.core.errors import BadRequest, TooLarge
from llmtap.lane.arrival import Arrival
from llmtap.lane.inbound import Inbound
from llmtap.lane.refusals import ClientGone


class Client:
    def __init__(self) -> None:
        self.expected: list[Inbound] = []
        self.written: list[bytes] = []
        self.lane = SimpleNamespace(loop=asyncio.get_running_loop(), limits=SimpleNamespace(max_body_bytes=5))
        self.transport = SimpleNamespace(write=self.written.append)

    def expect_body(self, inbound: Inbound) -> None:
        self.expected.append(inbound)


def waiting_for(inbound: Inbound) -> tuple[Arrival, Client, Any]:
    client = Client()
    flow = tflow.tflow()
    return Arrival(client, inbound), client, flow  # type: ignore[arg-type]


async def test_a_body_that_is_here_is_not_waited_for() -> None:
    inbound = Inbound()
    inbound.parts, inbound.complete, inbound.trailers = [b"a", b"b"], True, [(b"x", b"y")]
    arrival, client, flow = waiting_for(inbound)
    await arrival.read(flow)
    assert flow.request.data.content == b"ab" and flow.request.trailers["x"] == "y" and not client.expected


async def test_a_client_that_waits_is_told_to_go_on() -> None:
    inbound = Inbound()
    inbound.continue_expected = True
    arrival, client, flow = waiting_for(inbound)
    task = asyncio.create_task(arrival.read(flow))
    await asyncio.sleep(0)
    assert client.written == [b"HTTP/1.1 100 Continue\r\n\r\n"] and client.expected == [inbound] and inbound.changed
    inbound.parts.append(b"body")
    inbound.complete = True
    inbound._notify()
    await task
    assert flow.request.data.content == b"body" and inbound.changed is None


async def test_what_ends_the_waiting() -> None:
    inbound = Inbound()
    arrival, _, flow = waiting_for(inbound)
    task = asyncio.create_task(arrival.read(flow))
    await asyncio.sleep(0)
    inbound.refuse(BadRequest("no"))
    with pytest.raises(BadRequest):
        await task
    arrival.fail(ClientGone())  # nobody waits: nothing happens

    inbound = Inbound()
    inbound.overflow = True
    arrival, _, flow = waiting_for(inbound)
    with pytest.raises(TooLarge, match="larger than 5 bytes"):
        await arrival.read(flow)


async def test_the_rest_of_a_refused_body_is_dropped() -> None:
    inbound = Inbound()
    inbound.parts.append(b"begun")
    arrival, _, _ = waiting_for(inbound)
    task = asyncio.create_task(arrival.swallow())
    await asyncio.sleep(0)
    assert not inbound.parts and inbound.overflow
    inbound._notify()
    assert await task is True
    task = asyncio.create_task(arrival.swallow())
    await asyncio.sleep(0)
    arrival.fail(ClientGone())
    assert await task is False
