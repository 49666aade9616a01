"""Replays go the way of every other request: plan, retries, keys on the wire only."""

from __future__ import annotations

import asyncio

from mitmproxy import ctx, http
from mitmproxy.addons import clientplayback

from llmtap.core.plan import Target
from llmtap.lane import _replay
from llmtap.lane.replay import Replay
from support.lane import PATIENCE_S, Peer, echo, post, response, running_lane, upstream


async def replayed(flow: http.HTTPFlow) -> None:
    """As `replay.client` does it."""
    flow.backup()
    flow.is_replay = "request"
    flow.response = None
    flow.error = None
    handler = clientplayback.ReplayHandler(flow, ctx.options)
    assert isinstance(handler, Replay)
    await asyncio.wait_for(handler.replay(), PATIENCE_S)


async def test_a_finished_flow_goes_out_again_with_another_backend_tried() -> None:
    bodies: list[bytes] = []

    async def die(peer: Peer) -> None:
        await peer.message()

    async def good(peer: Peer) -> None:
        while True:
            head, body = await peer.message()
            assert b"authorization: Bearer secret\r\n" in head
            bodies.append(body)
            peer.send(response(b'{"n":%d}' % len(bodies)))

    async with upstream(die) as bad, upstream(good) as up, running_lane() as lane:
        targets = [Target("a", "127.0.0.1", u.port, headers=((b"authorization", b"Bearer secret"),)) for u in (bad, up)]
        lane.rec.candidates = targets
        assert (await lane.ask(post(b"first")))[1] == b'{"n":1}'
        flow = lane.rec.flows[0]
        flow.request.text = "edited"
        lane.rec.events.clear()
        await replayed(flow)
        assert bodies == [b"first", b"edited"]
        assert flow.response is not None and flow.response.content == b'{"n":2}' and not flow.live
        assert lane.rec.flow_events() == ["requestheaders", "request", "responseheaders", "response"]
        assert "secret" not in str(flow.get_state()) and lane.rec.plan().attempts == 2


async def test_without_a_plan_it_goes_nowhere() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        await lane.ask(post(b"{}"))
        lane.rec.candidates = []
        before = up.connections
        lane.rec.plans.clear()
        lane.lane.pool.close()
        flow = lane.rec.flows[0]
        await replayed(flow)
        assert up.connections == before
        assert flow.error is not None and "no healthy backend" in flow.error.msg


async def test_a_path_that_would_end_the_request_line_is_not_sent() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        await lane.ask(post(b"{}"))
        flow = lane.rec.flows[0]
        flow.request.data.path = b"/ HTTP/1.1\r\nx: y\r\n\r\n"
        await replayed(flow)
        assert flow.error is not None and "unusable" in flow.error.msg


async def test_where_there_is_no_lane_mitmproxys_own_client_replays() -> None:
    async with running_lane():
        pass
    from mitmproxy.test import taddons

    with taddons.context():
        assert _replay(http.HTTPFlow.__new__(http.HTTPFlow)) is None
