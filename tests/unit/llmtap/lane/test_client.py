"""The connection's own business; whole exchanges are in tests/integration/test_lane_*.py."""

import asyncio
import socket

from llmtap.lane.client import hung_up, reason_of
from support.lane import Limits, Peer, echo, get, post, response, running_lane, until, upstream


def test_a_peer_that_hung_up_is_seen_past_unread_bytes() -> None:
    ours, theirs = socket.socketpair()
    try:
        assert not hung_up(ours)
        theirs.send(b"unread")
        assert not hung_up(ours)
        theirs.shutdown(socket.SHUT_WR)
        assert hung_up(ours)
    finally:
        ours.close()
        theirs.close()
    assert not hung_up(ours) and not hung_up(None)


def test_reasons() -> None:
    assert reason_of(431) == b"Request Header Fields Too Large" and reason_of(799) == b"Error"


async def test_bytes_ahead_are_bounded_and_taken_up_again() -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            _, body = await peer.message()
            await release.wait()
            peer.send(response(b"%d" % len(body)))

    async with upstream(script) as up, running_lane(limits=Limits(high_water=10_000)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"1") + b"".join(post(b"x" * 9000) for _ in range(2000)))
        await until(lambda: any(c._read_paused for c in lane.lane._clients))
        (client,) = lane.lane._clients
        assert len(client._ahead) < 10_000 + (256 << 10) + 1
        release.set()
        assert (await peer.message())[1] == b"1"
        for _ in range(2000):
            assert (await peer.message())[1] == b"9000"


async def test_connections_are_counted_as_mitmproxys() -> None:
    async with running_lane() as lane:
        proxyserver = lane.master.addons.get("proxyserver")
        peer = await lane.connect()
        await lane.rec.seen("client_connected")
        assert proxyserver.active_connections() == 1 == lane.lane.connections
        await next(iter(proxyserver.connections.values())).server_event(object())  # inject.*: said to be impossible, no error
        peer.close()
        await lane.rec.seen("client_disconnected")
        assert proxyserver.active_connections() == 0 == lane.lane.connections


async def test_the_next_request_waits_until_the_client_has_taken_the_last_answer() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.message()
            peer.send(response(b"y" * 8_000_000))

    async with upstream(script) as up, running_lane(limits=Limits(high_water=64 << 10)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect(limit=1 << 12)
        peer.send(get() * 20)
        await until(lambda: any(c.write_paused for c in lane.lane._clients))
        begun = lane.rec.events.count("requestheaders")
        assert begun < 10
        for _ in range(20):
            assert len((await peer.message())[1]) == 8_000_000


async def test_an_error_before_any_flow_is_a_whole_answer_and_fires_no_flow_hook() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        head, body = await lane.ask(b"GET http://absolute/ HTTP/1.1\r\nHost: g\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n") and body.startswith(b'{"error":{')
        peer = await lane.connect()
        peer.send(b"HEAD x HTTP/1.1\r\nHost: g\r\n\r\n")
        assert (await peer.rest()).count(b"\r\n\r\n") == 1 or b"HTTP/1.1 400" in await peer.rest()
        assert lane.rec.flow_events() == []
