"""Corners of one exchange; the whole of it is in tests/integration/test_lane_*.py."""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from mitmproxy import ctx, http

from llmtap.core.plan import Target
from llmtap.lane import pieces
from support.lane import Peer, Streamer, echo, get, post, response, running_lane, upstream


async def test_nothing_keeps_a_finished_flow_alive() -> None:
    async with upstream(echo) as up, running_lane(Streamer()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        for body in (b"1", b"2"):
            peer.send(post(body))
            await peer.message()
        flows = [weakref.ref(flow) for flow in lane.rec.flows]
        gc.disable()
        try:
            lane.rec.flows.clear()
            # the first is gone by reference counting alone; the last one may still be an argument somewhere
            assert flows[0]() is None
        finally:
            gc.enable()
        assert len(lane.rec.plans) <= 1


async def test_connections_that_end_badly_leave_nothing_to_the_collector() -> None:
    """Thousands of streams whose clients leave at once would else be one pause of half a second, some time later."""

    async def endless(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
        await peer.rest()

    async with upstream(endless) as up, running_lane(Streamer()) as lane:
        lane.rec.candidates = [up.target()]
        for times in (1, 2, 3):
            peer = await lane.connect()
            peer.send(post(b"{}"))
            await lane.rec.seen("responseheaders", times)
            peer.close()
            await lane.rec.seen("error", times)
            await lane.rec.seen("client_disconnected", times)
            await lane.rec.seen("server_disconnected", times)
        left: list[weakref.ref[Any]] = [weakref.ref(flow) for flow in lane.rec.flows]
        left += [weakref.ref(flow.client_conn) for flow in lane.rec.flows]
        left += [weakref.ref(flow.server_conn) for flow in lane.rec.flows]
        gc.disable()
        try:
            lane.rec.flows.clear()
            del peer
            # the last one may still be an argument somewhere
            assert [ref() for ref in left[::3] + left[1::3]] == [None] * 6
        finally:
            gc.enable()


async def test_addons_see_where_a_request_went_and_may_replace_the_response() -> None:
    class Replace:
        name = "test.replace"

        def response(self, flow: http.HTTPFlow) -> None:
            assert flow.server_conn.peername == ("127.0.0.1", flow.request.port)
            flow.response = http.Response.make(418, b"tea", {"x": "y"})

    async with upstream(echo) as up, running_lane(Replace()) as lane:
        lane.rec.candidates = [up.target()]
        head, body = await lane.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 418 ") and b"x: y\r\n" in head and body == b"tea"
        assert lane.rec.flows[0].request.port == up.port


async def test_addons_may_change_the_request_on_its_way() -> None:
    class Change:
        name = "test.change"

        def request(self, flow: http.HTTPFlow) -> None:
            flow.request.path = "/other?x=1"
            flow.request.text = "changed"
            flow.request.headers["x"] = "y"

    async def script(peer: Peer) -> None:
        head, body = await peer.message()
        assert head.startswith(b"POST /other?x=1 HTTP/1.1\r\n") and b"x: y\r\n" in head and body == b"changed"
        peer.send(response())

    async with upstream(script) as up, running_lane(Change()) as lane:
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 200 ")


async def test_an_answer_that_raises_or_cannot_be_sent_is_replaced_by_the_plain_one() -> None:
    def broken(flow: http.HTTPFlow, error: object) -> http.Response:
        raise RuntimeError("on purpose")

    def unsendable(flow: http.HTTPFlow, error: object) -> http.Response:
        return http.Response.make(502, b"", {"x": "a\r\nb"})

    async with running_lane() as lane:
        for bad in (broken, unsendable):
            lane.lane.answer = bad  # type: ignore[assignment]
            lane.rec.candidates = []
            head, body = await lane.ask(get())
            assert head.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 500 ")) and b'"error"' in body


async def test_an_on_failure_that_raises_changes_nothing() -> None:
    def broken(target: Target, reason: str) -> None:
        raise RuntimeError("on purpose")

    async def die(peer: Peer) -> None:
        await peer.message()

    class Plan:
        name = "test.plan"

        def request(self, flow: http.HTTPFlow) -> None:
            lane.rec.plans[flow].on_failure = broken

    async with upstream(die) as bad, upstream(echo) as good, running_lane(Plan()) as lane:
        lane.rec.candidates = [bad.target(), good.target()]
        assert (await lane.ask(post(b"{}")))[1] == b'{"ok":1}'


async def test_a_generated_answer_that_breaks_says_so() -> None:
    class Generate:
        name = "test.generate"

        def request(self, flow: http.HTTPFlow) -> None:
            async def pieces():  # type: ignore[no-untyped-def]
                yield b"data: 1\n\n"
                raise RuntimeError("on purpose")

            flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
            del flow.response.headers["content-length"]
            lane.rec.plans[flow].body = pieces()

    async with running_lane(Generate()) as lane:
        lane.rec.candidates = [Target("x", "127.0.0.1", 9)]
        peer = await lane.connect()
        peer.send(get())
        got = await peer.rest()
        assert b"data: 1\n\n" in got and b"internal_error" in got and b"on purpose" not in got
        assert lane.rec.flow_events() == ["requestheaders", "request", "responseheaders", "error"]


async def test_a_generated_answer_waits_for_a_slow_reader() -> None:
    made = 0

    class Generate:
        name = "test.generate"

        def request(self, flow: http.HTTPFlow) -> None:
            async def pieces():  # type: ignore[no-untyped-def]
                nonlocal made
                for _ in range(1000):
                    made += 1
                    yield b"z" * 65536

            flow.response = http.Response.make(200, b"")
            del flow.response.headers["content-length"]
            lane.rec.plans[flow].body = pieces()

    async with running_lane(Generate()) as lane:
        lane.rec.candidates = [Target("x", "127.0.0.1", 9)]
        peer = await lane.connect(limit=1 << 12)
        peer.send(get())
        await peer.head()
        await asyncio.wait_for(_paused(lane), 5)
        assert made < 1000
        total = 0
        while (size := int(await peer.until(b"\r\n"), 16)) != 0:
            await peer.exactly(size + 2)
            total += size
        assert total == 1000 * 65536


async def _paused(lane: object) -> None:
    from support.lane import until

    await until(lambda: any(c.write_paused for c in lane.lane._clients))  # type: ignore[attr-defined]


async def test_streamed_bodies_are_stored_when_mitmproxy_is_told_to() -> None:
    """`store_streamed_bodies`, as in mitmproxy's own modes; and while it streams what has come so far can be seen."""
    go_on = asyncio.Event()

    async def stream(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        for piece in (b"3\r\n, a\r\n", b"5\r\nnd se\r\n"):
            await asyncio.sleep(0)
            peer.send(piece)
        await go_on.wait()
        peer.send(b"4\r\ncond\r\n0\r\n\r\n")

    for store in (True, False):
        go_on.clear()
        async with upstream(stream) as up, running_lane(Streamer()) as lane:
            ctx.options.update(store_streamed_bodies=store)
            lane.rec.candidates = [up.target()]
            peer = await lane.connect()
            peer.send(post(b"{}"))
            await peer.until(b"nd se\r\n")
            (flow,) = lane.rec.flows
            (client,) = lane.lane._clients
            client.tick(lane.lane.loop.time())
            assert flow.response is not None
            assert flow.response.raw_content == (b"first, and se" if store else None)
            go_on.set()
            await peer.until(b"0\r\n\r\n")
            assert flow.response.raw_content == (b"first, and second" if store else None)


async def test_a_body_too_large_to_store_is_not_stored_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_STORED_BYTES", 8)

    async def stream(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 10\r\n\r\n12345")
        await lane.rec.seen("responseheaders")
        peer.send(b"67890")

    async with upstream(stream) as up, running_lane(Streamer()) as lane:
        ctx.options.update(store_streamed_bodies=True)
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"{}")))[1] == b"1234567890"
        assert lane.rec.flows[0].response is not None and lane.rec.flows[0].response.raw_content is None


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_kill_ends_a_request_that_is_not_held(streaming: bool) -> None:
    """mitmproxy's own modes go on until the next event (its issue 4711); here the next look at the connection ends it."""
    closed = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.message()
        if streaming:
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        assert await peer.rest() == b""
        closed.set()

    async with upstream(silent) as up, running_lane(Streamer()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await (peer.until(b"first\r\n") if streaming else lane.rec.seen("server_connected"))
        lane.rec.flows[0].kill()
        await asyncio.wait_for(closed.wait(), 10)
        assert await peer.rest() == b""
        assert lane.rec.events.count("error") == 1 and "response" not in lane.rec.events


async def test_the_end_of_the_process_ends_a_held_request() -> None:
    class Hold:
        name = "test.hold"

        def request(self, flow: http.HTTPFlow) -> None:
            flow.intercept()

    async with running_lane(Hold()) as lane:
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await lane.rec.seen("request")
        (client,) = lane.lane._clients
        assert client._relay is not None and client._relay.task is not None
        task = client._relay.task
        task.cancel()
        await asyncio.wait_for(asyncio.wait([task]), 10)
        assert task.done() and lane.rec.events.count("error") == 1 and not lane.rec.flows[0].intercepted
