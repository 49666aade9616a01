"""Corners of a body on its way; the whole of it is in tests/integration/test_lane_upload.py."""

from __future__ import annotations

import gc
import weakref

import pytest
from mitmproxy import http

from llmtap.lane import upload
from support.lane import Limits, Peer, response, running_lane, upstream


class Stream:
    name = "test.stream"

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        flow.request.stream = True


async def script(peer: Peer) -> None:
    while True:
        _, body = await peer.message()
        peer.send(response(b"%d" % len(body)))


HEAD = b"POST /x HTTP/1.1\r\nHost: g\r\nContent-Length: 100000\r\n\r\n"


async def test_without_a_plan_it_goes_to_the_default_server() -> None:
    async with upstream(script) as up, running_lane(Stream(), default=up.port) as lane:
        peer = await lane.connect()
        for times in range(1, 4):
            peer.send(HEAD)
            await lane.rec.seen("server_connected", times)
            peer.send(b"x" * 100_000)
            assert (await peer.message())[1] == b"100000"
        assert up.connections == 3, "a stale connection would cost a body: it gets a new one"


async def test_a_large_body_to_be_looked_at_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_STORED_BYTES", 50_000)
    async with upstream(script) as up, running_lane(Stream(), default=up.port) as lane:
        lane.master.options.update(store_streamed_bodies=True)
        peer = await lane.connect()
        peer.send(HEAD)
        await lane.rec.seen("server_connected")
        peer.send(b"x" * 100_000)
        await peer.message()
        assert lane.rec.flows[0].request.raw_content is None


async def test_nothing_keeps_a_finished_upload_alive() -> None:
    async with upstream(script) as up, running_lane(Stream(), default=up.port, limits=Limits(high_water=1000)) as lane:
        peer = await lane.connect()
        for times in (1, 2):
            peer.send(HEAD)
            await lane.rec.seen("server_connected", times)
            peer.send(b"x" * 100_000)
            await peer.message()
        flows = [weakref.ref(flow) for flow in lane.rec.flows]
        gc.disable()
        try:
            lane.rec.flows.clear()
            assert flows[0]() is None
        finally:
            gc.enable()
