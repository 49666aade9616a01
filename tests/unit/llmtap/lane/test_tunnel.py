"""Corners of a tunnel; the whole of it is in tests/integration/test_lane_websocket.py."""

import gc
import weakref

from mitmproxy import http

from support.lane import running_lane, until, upstream
from support.websocket import echo, open_socket, serving


async def test_nothing_keeps_a_finished_websocket_alive() -> None:
    async with upstream(serving(echo)) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        socket.text("a")
        assert await socket.message() == "a"
        socket.close()
        await socket.closed()
        await until(lambda: lane.lane.connections == 0 and lane.lane.pool.open_count == 0, "the end")
        await until(lambda: not lane.rec.flows[0].live, "the flow's end")
        flow = weakref.ref(lane.rec.flows[0])
        lane.rec.flows.clear()
        gc.collect()
        assert flow() is None


async def test_an_addon_that_raises_changes_nothing() -> None:
    class Raises:
        name = "test.raises"
        calls = 0

        def websocket_message(self, flow: http.HTTPFlow) -> None:
            self.calls += 1
            raise RuntimeError("on purpose")

        websocket_start = websocket_end = websocket_message

    raises = Raises()
    async with upstream(serving(echo)) as up, running_lane(raises) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        socket.text("a")
        assert await socket.message() == "a"
        socket.close(1000, "bye")
        assert await socket.closed() == (1000, "bye")
        await until(lambda: raises.calls == 4, "all hooks")


async def test_a_start_hook_that_waits_holds_back_what_has_come() -> None:
    order: list[str] = []

    class Waits:
        name = "test.waits"

        async def websocket_start(self, flow: http.HTTPFlow) -> None:
            flow.intercept()
            order.append("start")

        def websocket_message(self, flow: http.HTTPFlow) -> None:
            order.append("message")

    async with upstream(serving(echo)) as up, running_lane(Waits()) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        socket.text("a")
        await until(lambda: order, "the start")
        assert order == ["start"]
        lane.rec.flows[0].resume()
        assert await socket.message() == "a" and order == ["start", "message", "message"]
