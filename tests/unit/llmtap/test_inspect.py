"""What the list of flows shows, and how long it gets; with mitmproxy's real View."""

from __future__ import annotations

import asyncio

import pytest
from mitmproxy import http
from mitmproxy.addons.view import View
from mitmproxy.test import taddons, tflow

from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.record import Outcome, Summary, Usage
from llmtap.exchange import Exchange
from llmtap.inspect import MARK, Inspect, summary
from llmtap.wire.request import parse


def exchange(outcome: Outcome = "open", model: str = "m") -> Exchange:
    ex = Exchange("POST", "/v1/chat/completions", ENDPOINTS["/v1/chat/completions"], "openai", "127.0.0.1")
    ex.parsed = parse("chat", b'{"model":"%b","messages":[]}' % model.encode("unicode_escape").replace(b"\\x", b"\\u00"))
    ex.started, ex.backend = 10.0, "a"
    if outcome != "open":
        ex.summary = Summary(usage=Usage(prompt_tokens=3, completion_tokens=2, source="upstream"))
        ex.first_content = 10.25
        ex.finalise(outcome, 11.5)
    return ex


class Listed:
    """A view and the addon; `flow` puts one into the list."""

    def __init__(self, keep: int) -> None:
        self.view = View()
        self.inspect = Inspect(self.view, keep)

    def flow(self) -> http.HTTPFlow:
        flow = tflow.tflow(live=True)
        self.view.requestheaders(flow)
        return flow

    def finish(self, flow: http.HTTPFlow, outcome: Outcome = "ok") -> None:
        self.inspect.on_finish(flow, exchange(outcome))
        flow.live = False

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.view.store_count() != count:
                await asyncio.sleep(0.01)


@pytest.fixture
async def context() -> object:
    # on the loop: mitmproxy's master would make, and never close, one of its own
    with taddons.context() as context:
        yield context


def test_one_line() -> None:
    assert summary(exchange("ok")) == "ok · m@a · 3+2 tok · ttft 250 ms · 1.5 s"
    failed = exchange("upstream_error", "evil\x1bmodel")
    failed.error_type = "connection_refused"
    assert summary(failed).startswith("upstream_error · evil�model@a") and summary(failed).endswith(" · connection_refused")


async def test_comments_and_marks_follow_the_exchange_and_leave_a_persons_alone(context: object) -> None:
    listed = Listed(0)
    flow, own = tflow.tflow(live=True), tflow.tflow(live=True)
    own.comment, own.marked = "look at this", ":cat:"
    for each in (flow, own):
        listed.inspect.on_request(each, exchange())
    assert flow.comment == "running · m@a"
    for each in (flow, own):
        listed.inspect.on_finish(each, exchange("timeout"))
    assert flow.comment.startswith("timeout · ") and flow.marked == MARK
    listed.inspect.on_finish(flow, exchange("ok"))  # replayed
    assert flow.comment.startswith("ok · ") and flow.marked == ""
    assert own.comment == "look at this" and own.marked == ":cat:"


async def test_the_oldest_finished_flows_leave_and_no_live_one_is_killed(context: object) -> None:
    listed = Listed(2)
    running = listed.flow()
    flows = [listed.flow() for _ in range(5)]
    for flow in flows:
        listed.inspect.on_finish(flow, exchange("ok"))
    flows[0].live = True  # finished, but its last bytes are still to be sent
    for flow in flows[1:]:
        flow.live = False
    await listed.until(4)
    assert [listed.view.get_by_id(flow.id) is not None for flow in flows] == [True, False, False, True, True]
    assert flows[0].error is None or "killed" not in flows[0].error.msg
    flows[0].live = False
    await listed.until(3)
    assert listed.view.get_by_id(running.id) is running and running.live
    listed.inspect.stop()


async def test_own_answers_leave_and_zero_keeps_everything_else(context: object) -> None:
    listed = Listed(0)
    poll, flow = listed.flow(), listed.flow()
    listed.inspect.own_answer(poll)
    poll.live = False
    listed.finish(flow)
    await listed.until(1)
    assert listed.view.get_by_id(flow.id) is flow
    listed.inspect.stop()


async def test_streams_are_drawn_anew_while_they_run(context: object) -> None:
    listed = Listed(0)
    drawn = asyncio.Event()
    flow = listed.flow()

    def updated(flow: object) -> None:
        drawn.set()

    listed.view.sig_view_update.connect(updated)
    flow.response = http.Response.make(200)
    listed.inspect.on_responseheaders(flow, exchange())
    assert listed.inspect._timer is None, "a reply that comes whole is drawn when it is there"
    flow.response.stream = True
    listed.inspect.on_responseheaders(flow, exchange())
    await asyncio.wait_for(drawn.wait(), 10)
    listed.finish(flow)
    assert not listed.inspect._streaming
    listed.inspect.stop()
