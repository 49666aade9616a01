"""One test for each private name of mitmproxy: what fails here is what an upgrade broke."""

import asyncio
import gc
import uuid
import weakref
from typing import Any

import pytest
from mitmproxy import addonmanager, connection, http, io, options
from mitmproxy.addons import clientplayback, proxyserver
from mitmproxy.coretypes import multidict
from mitmproxy.flow import Flow
from mitmproxy.master import Master
from mitmproxy.proxy.layers.websocket import WebSocketMessageInjected
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import taddons, tflow
from mitmproxy.utils import asyncio_utils
from mitmproxy.websocket import WebSocketMessage

from llmtap.lane import mitm

FIELDS = ((b"Host", b"g"), (b"X", b"1"), (b"x", b"2"))


def test_headers_are_those_the_constructor_makes() -> None:
    made, stock = mitm.headers(FIELDS), http.Headers(FIELDS)
    assert made == stock and vars(made) == vars(stock) and made["x"] == "1, 2"
    made["y"] = "3"
    assert bytes(made).endswith(b"y: 3\r\n")
    assert isinstance(made, multidict.MultiDict)


def test_a_request_is_the_one_the_constructor_makes() -> None:
    made = mitm.request("h", 1, b"POST", b"/a", b"HTTP/1.1", FIELDS, 5.0)
    stock = http.Request("h", 1, b"POST", b"http", b"", b"/a", b"HTTP/1.1", http.Headers(FIELDS), None, None, 5.0, None)
    assert made.get_state() == stock.get_state() and vars(made).keys() == vars(stock).keys()
    assert vars(made.data).keys() == vars(stock.data).keys()
    assert made.pretty_url == "http://g/a" and made.copy().get_state() == stock.get_state()


def test_a_response_is_the_one_the_constructor_makes() -> None:
    made = mitm.response(200, b"OK", b"HTTP/1.1", FIELDS, 5.0)
    stock = http.Response(b"HTTP/1.1", 200, b"OK", http.Headers(FIELDS), None, None, 5.0, None)
    assert made.get_state() == stock.get_state() and vars(made).keys() == vars(stock).keys()
    assert vars(made.data).keys() == vars(stock.data).keys()


def test_a_flow_is_the_one_the_constructor_makes(tmp_path: Any) -> None:
    client = connection.Client(peername=("a", 1), sockname=("b", 2))
    server = connection.Server(address=("c", 3))
    request = mitm.request("h", 1, b"POST", b"/a", b"HTTP/1.1", FIELDS, 5.0)
    made = mitm.flow(client, server, request, 7.0)
    stock = http.HTTPFlow(client, server, live=True)
    stock.request = request
    assert vars(made).keys() == vars(stock).keys()
    stock.id, stock.timestamp_created = made.id, 7.0
    assert vars(made) == vars(stock) and made.get_state() == stock.get_state()
    assert uuid.UUID(made.id).version == 4 and str(uuid.UUID(made.id)) == made.id
    ids = mitm.FlowIds(), mitm.FlowIds()
    made_ids = {mitm.flow(client, server, request, 0.0, one()).id for one in ids for _ in range(1000)}
    assert len(made_ids | {mitm.flow(client, server, request, 0.0).id}) == 2001
    assert all(str(uuid.UUID(one)) == one and uuid.UUID(one).version == 4 for one in made_ids)
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None


def test_saved_and_read_back(tmp_path: Any) -> None:
    flow = mitm.flow(
        connection.Client(peername=("a", 1), sockname=("b", 2)),
        connection.Server(address=("c", 3)),
        mitm.request("h", 1, b"POST", b"/a", b"HTTP/1.1", FIELDS, 5.0),
        7.0,
    )
    flow.response = mitm.response(200, b"OK", b"HTTP/1.1", FIELDS, 5.0)
    file = tmp_path / "f"
    with file.open("wb") as out:
        io.FlowWriter(out).add(flow)
    with file.open("rb") as back:
        (read,) = io.FlowReader(back).stream()
    assert read.get_state() == flow.get_state()


class Named:
    def __init__(self, name: str, *addons: Any) -> None:
        self.name = name
        self.addons = list(addons)

    def request(self, flow: http.HTTPFlow) -> None: ...


async def test_hooks_of_walks_the_chain_as_mitmproxy_does() -> None:
    manager = Master(options.Options()).addons
    inner = Named("inner")
    first, second = Named("first", inner), Named("second")
    second.request = asyncio  # type: ignore[assignment]  # a module called like a hook is no hook
    third = Named("third")
    manager.add(first, second, third)
    groups = mitm.hooks_of(manager, "request")
    assert [[h.__self__.name for h in group] for group in groups] == [["first", "inner"], ["third"]]  # type: ignore[attr-defined]
    assert [list(addonmanager.traverse([a])) for a in manager.chain] == [[first, inner], [second], [third]]
    assert mitm.hooks_of(manager, "response") == ()


async def test_addons_that_come_and_go_are_announced() -> None:
    manager = Master(options.Options()).addons
    calls: list[int] = []
    mitm.on_addons_changed(manager, lambda: calls.append(len(manager.chain)))
    addon = Named("one")
    manager.add(addon)
    assert len(calls) == 2 and addon in manager
    manager.remove(addon)
    assert len(calls) == 4 and addon not in manager
    manager.add(addon)
    manager.clear()
    assert len(calls) == 8 and manager.chain == []


async def test_a_held_flow_wakes_up_when_it_is_resumed_and_when_it_is_killed() -> None:
    for how in ("resume", "kill"):
        flow = tflow.tflow()
        flow.live = True
        flow.intercept()
        waiting = asyncio.ensure_future(mitm.resumed(flow))
        await asyncio.wait([waiting], timeout=0)
        assert not waiting.done()
        getattr(flow, how)()
        await asyncio.wait_for(waiting, 5)
        assert "kill" not in vars(flow)
        assert (flow.error is not None and flow.error.msg == "Connection killed.") == (how == "kill")
    await mitm.resumed(tflow.tflow())  # not held: at once


async def test_stock_still_does_not_wake_a_killed_flow() -> None:
    """When this fails mitmproxy has mended issue 4711, and `resumed` can be `Flow.wait_for_resume`."""
    flow = tflow.tflow()
    flow.live = True
    flow.intercept()
    waiting = asyncio.ensure_future(flow.wait_for_resume())
    await asyncio.wait([waiting], timeout=0)
    flow.kill()
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    waiting.cancel()
    assert Flow.resume is not None


def test_an_injected_message_is_recognised() -> None:
    message = WebSocketMessage(1, True, b"a")
    assert mitm.injected(WebSocketMessageInjected(tflow.twebsocketflow(), message)) is message
    assert mitm.injected(object()) is None


async def test_connections_are_registered_where_mitmproxy_counts_them() -> None:
    master = Master(options.Options())
    ps = proxyserver.Proxyserver()
    master.addons.add(ps)
    mitm.register_connection(ps, "id", object())
    assert ps.active_connections() == 1
    mitm.forget_connection(ps, "id")
    mitm.forget_connection(ps, "id")
    assert ps.active_connections() == 0


async def test_shutdown_drains_first_and_a_second_one_does_not_wait() -> None:
    master = Master(options.Options())
    go_on = asyncio.Event()
    drained: list[bool] = []

    async def drain() -> None:
        await go_on.wait()
        drained.append(True)

    mitm.drain_before_shutdown(master, drain)
    master.shutdown()
    for _ in range(5):
        await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=0)
    assert not master.should_exit.is_set()
    go_on.set()
    await asyncio.wait_for(master.should_exit.wait(), 5)
    assert drained == [True]

    impatient = Master(options.Options())
    mitm.drain_before_shutdown(impatient, asyncio.Event().wait)  # type: ignore[arg-type]
    impatient.shutdown()
    impatient.shutdown()
    await asyncio.wait_for(impatient.should_exit.wait(), 5)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def test_reasons() -> None:
    assert mitm.REASONS[200] == b"OK" and mitm.REASONS[503] == b"Service Unavailable"


def test_the_registries_refuse_a_second_gateway() -> None:
    import llmtap.lane.mode

    assert ProxyMode.parse("gateway@1").type_name == "gateway"
    assert isinstance(ServerInstance.make("gateway@1", proxyserver.ServerManager), llmtap.lane.mode.GatewayInstance)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        type("GatewayMode", (ProxyMode,), {})


def test_uvloop_with_mitmproxys_eager_tasks() -> None:
    async def nothing() -> int:
        return 1

    async def main() -> None:
        with asyncio_utils.set_eager_task_factory():
            task = asyncio.create_task(nothing(), name="named")
            assert task.done() and task.result() == 1 and task.get_name() == "named"
            task = asyncio_utils.create_task(nothing(), name="a", keep_ref=True)
            assert await task == 1
        assert not asyncio.create_task(nothing()).done()

    with asyncio.Runner(loop_factory=mitm.uvloop_loop_factory) as runner:
        runner.run(main())
        assert type(runner.get_loop()).__mro__[1].__module__.startswith("uvloop")


async def test_who_replays_a_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ClientPlayback.playback` looks the name up each time and awaits `replay()` of what it makes."""
    monkeypatch.setattr(clientplayback, "ReplayHandler", clientplayback.ReplayHandler)
    replayed: list[http.HTTPFlow] = []
    done = asyncio.Event()

    class Ours:
        def __init__(self, flow: http.HTTPFlow) -> None:
            self.flow = flow

        async def replay(self) -> None:
            replayed.append(self.flow)
            done.set()

    ours = True
    mitm.replay_with(lambda flow: Ours(flow) if ours else None)
    playback = clientplayback.ClientPlayback()
    with taddons.context(playback) as context:
        playback.running()
        flow = tflow.tflow(live=False)
        context.master.commands.call("replay.client", [flow])
        await asyncio.wait_for(done.wait(), 10)
        assert replayed == [flow]
        await playback.done()
        ours = False
        assert isinstance(clientplayback.ReplayHandler(tflow.tflow(), context.options), mitm._OwnReplay)
