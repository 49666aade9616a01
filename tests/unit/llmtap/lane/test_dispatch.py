"""Against the original: the same addons get the same calls in the same order from `Dispatcher` and from mitmproxy itself."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import exceptions, options
from mitmproxy.hooks import Hook
from mitmproxy.master import Master
from mitmproxy.proxy.layers.http import HttpRequestHook
from mitmproxy.proxy.server_hooks import ClientConnectedHook
from mitmproxy.test import tflow

from llmtap.lane.dispatch import Dispatcher


def make(log: list[str], name: str, does: Callable[[Any], Any] | None = None, addons: tuple[Any, ...] = ()) -> Any:
    def request(flow: Any) -> Any:
        log.append(name)
        return does(flow) if does is not None else None

    def update(flows: Any) -> None:
        log.append(f"{name} update {len(flows)}")

    return type(name, (), {"name": name, "addons": addons, "request": staticmethod(request), "update": staticmethod(update)})()


def halt(flow: Any) -> None:
    raise exceptions.AddonHalt


def fail(flow: Any) -> None:
    raise ValueError("on purpose")


async def wait(flow: Any) -> None:
    await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=0)


async def wait_then_fail(flow: Any) -> None:
    await wait(flow)
    raise ValueError("on purpose")


async def wait_then_halt(flow: Any) -> None:
    await wait(flow)
    raise exceptions.AddonHalt


CHAINS: dict[str, Callable[[list[str]], list[Any]]] = {
    "plain": lambda log: [make(log, "a"), make(log, "b")],
    "nested": lambda log: [make(log, "a", addons=(make(log, "b", addons=(make(log, "c"),)),)), make(log, "d")],
    "halt": lambda log: [make(log, "a"), make(log, "b", halt), make(log, "c")],
    "halt inside": lambda log: [make(log, "a", halt, (make(log, "b"),)), make(log, "c")],
    "fail": lambda log: [make(log, "a", fail), make(log, "b")],
    "fail skips its own group": lambda log: [make(log, "a", fail, (make(log, "b"),)), make(log, "c")],
    "wait": lambda log: [make(log, "a", wait), make(log, "b", wait, (make(log, "c"),)), make(log, "d")],
    "wait then fail": lambda log: [make(log, "a", wait_then_fail, (make(log, "b"),)), make(log, "c", wait)],
    "wait then halt": lambda log: [make(log, "a", wait_then_halt, (make(log, "b"),)), make(log, "c")],
    "fail after wait": lambda log: [make(log, "a", wait, (make(log, "b", fail), make(log, "c"))), make(log, "d")],
}


@pytest.mark.parametrize("name", CHAINS)
async def test_same_calls_in_the_same_order_as_mitmproxy(name: str, caplog: pytest.LogCaptureFixture) -> None:
    stock_log: list[str] = []
    stock = Master(options.Options())
    stock.addons.add(*CHAINS[name](stock_log))
    await stock.addons.handle_lifecycle(HttpRequestHook(tflow.tflow()))

    log: list[str] = []
    master = Master(options.Options())
    dispatcher = Dispatcher(master.addons)
    master.addons.add(*CHAINS[name](log))
    waiting = dispatcher.fire_flow("request", tflow.tflow())
    if waiting is not None:
        await waiting
    assert log == stock_log and log
    errors = [r for r in caplog.records if "on purpose" in r.getMessage()]
    assert len(errors) == 2 * log.count("b" if name == "fail after wait" else "a") * ("fail" in name)


async def test_what_stock_lets_out_of_a_hook_is_logged_like_any_error(caplog: pytest.LogCaptureFixture) -> None:
    def options_error(flow: Any) -> None:
        raise exceptions.OptionsError("on purpose")

    async def cancelled(flow: Any) -> None:
        raise asyncio.CancelledError

    log: list[str] = []
    master = Master(options.Options())
    dispatcher = Dispatcher(master.addons)
    master.addons.add(make(log, "a", options_error), make(log, "b", cancelled), make(log, "c"))
    waiting = dispatcher.fire_flow("request", tflow.tflow())
    assert waiting is not None
    await waiting
    assert log[:3] == ["a", "b", "c"] and len([r for r in caplog.records if "Addon error" in r.getMessage()]) == 2


async def test_a_cancelled_caller_is_cancelled() -> None:
    async def for_ever(flow: Any) -> None:
        await asyncio.Event().wait()

    master = Master(options.Options())
    dispatcher = Dispatcher(master.addons)
    master.addons.add(make([], "a", for_ever))
    waiting = dispatcher.fire("request", tflow.tflow())
    assert waiting is not None
    task = asyncio.ensure_future(waiting)
    await asyncio.wait([task], timeout=0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_addons_that_come_and_go_are_noticed() -> None:
    log: list[str] = []
    master = Master(options.Options())
    dispatcher = Dispatcher(master.addons)
    flow = tflow.tflow()
    dispatcher.fire_flow("request", flow)
    a, b = make(log, "a"), make(log, "b")
    master.addons.add(a)
    dispatcher.fire_flow("request", flow)
    master.addons.add(b)
    master.addons.remove(a)
    dispatcher.fire_flow("request", flow)
    assert log == ["a", "a update 1", "b", "b update 1"]
    master.addons.clear()
    dispatcher.fire_flow("request", flow)
    assert len(log) == 4


async def test_connections_get_no_update_and_a_held_flow_waits() -> None:
    log: list[str] = []
    master = Master(options.Options())
    dispatcher = Dispatcher(master.addons)
    addon = make(log, "a", lambda flow: flow.intercept())
    addon.client_connected = lambda client: log.append("client")
    master.addons.add(addon)
    hook: Hook = ClientConnectedHook(tflow.tclient_conn())
    assert dispatcher.fire(hook.name, hook.args()[0]) is None
    flow = tflow.tflow()
    waiting = dispatcher.fire_flow("request", flow)
    assert waiting is not None and log == ["client", "a", "a update 1"]
    task = asyncio.ensure_future(waiting)
    await asyncio.wait([task], timeout=0)
    assert not task.done()
    flow.resume()
    await asyncio.wait_for(task, 5)
