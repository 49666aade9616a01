"""Requests of our own: carried out like a client's, unseen by hooks, and stopped when nobody wants them any more."""

from __future__ import annotations

import asyncio

import pytest
from mitmproxy import http
from mitmproxy.connection import Client, Server
from mitmproxy.proxy.mode_specs import ProxyMode

from llmtap.core.errors import NoHealthyBackend, UpstreamFailed
from llmtap.core.plan import Plan, Target
from llmtap.lane import mitm
from llmtap.lane.errand import errand
from support.lane import PATIENCE_S, Peer, echo, response, running_lane, upstream


def asking(body: bytes = b'{"a":1}') -> http.HTTPFlow:
    request = mitm.request("", 0, b"POST", b"/v1/embeddings", b"HTTP/1.1", ((b"accept", b"*/*"),), 1.0)
    request.data.content = body
    client = Client(peername=("", 0), sockname=("", 0), timestamp_start=1.0, proxy_mode=ProxyMode.parse("regular"))
    return mitm.flow(client, Server(address=None), request, 1.0)


async def test_there_and_back_over_the_pool_and_no_hook_knows() -> None:
    heads: list[bytes] = []

    async def serve(peer: Peer) -> None:
        while True:
            head, body = await peer.message()
            heads.append(head)
            peer.send(response(body[:-1] + b',"b":2}'))

    async with upstream(serve) as up, running_lane() as lane:
        for _ in range(2):
            plan = Plan([Target("a", "127.0.0.1", up.port, host_header=b"h", headers=((b"authorization", b"Bearer k"),))])
            status, headers, content = await errand(lane.lane, asking(), plan)
            assert (status, content, headers["content-type"]) == (200, b'{"a":1,"b":2}', "application/json")
            assert plan.attempts == 1 and plan.cancel is None
        assert up.connections == 1, "the connection went back to the pool"
        assert heads[0].startswith(b"POST /v1/embeddings HTTP/1.1\r\n") and b"authorization: Bearer k\r\n" in heads[0]
        assert b"content-length: 7\r\n" in heads[0].lower()
        assert lane.rec.flow_events() == []


async def test_a_large_reply_in_pieces_and_a_failing_backend_first() -> None:
    async def die(peer: Peer) -> None:
        await peer.message()

    async def large(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n")
        for _ in range(3):
            peer.send(b"x" * 100_000)
            await peer.flush()
        await peer.rest()

    async with upstream(die) as bad, upstream(large) as good, running_lane() as lane:
        plan = Plan([bad.target("bad"), good.target("good")])
        status, _, content = await errand(lane.lane, asking(), plan)
        assert (status, len(content), plan.attempts) == (200, 300_000, 2)


async def test_failures() -> None:
    async def half(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await peer.flush()

    async with upstream(half) as up, running_lane() as lane:
        with pytest.raises(UpstreamFailed):
            await errand(lane.lane, asking(), Plan([up.target()]))
        with pytest.raises(NoHealthyBackend):
            await errand(lane.lane, asking(), Plan([]))


async def test_cancelled_it_stops_at_the_backend() -> None:
    gone = asyncio.Event()
    came = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        came.set()
        await peer.rest()
        gone.set()

    async with upstream(slow) as up, running_lane() as lane:
        task = asyncio.create_task(errand(lane.lane, asking(), Plan([up.target()])))
        await asyncio.wait_for(came.wait(), PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), PATIENCE_S)


async def test_an_odd_path_is_not_sent() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        flow = asking()
        flow.request.data.path = b"/a b"
        with pytest.raises(Exception, match="unusable"):
            await errand(lane.lane, flow, Plan([up.target()]))
        assert up.connections == 0
