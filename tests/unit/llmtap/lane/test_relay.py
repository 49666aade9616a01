"""Corners of one exchange; the whole of it is in tests/integration/test_lane_*.py."""

import asyncio
import gc
import weakref

from mitmproxy import http

from llmtap.core.plan import Target
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
