"""Steps fail closed for policy and open for observers; an end exactly once; who may look on and cancel."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from mitmproxy import flow as mflow
from mitmproxy import http

from llmtap.core.errors import BadRequest, Forbidden
from llmtap.exchange import Exchange
from support.chain import Under, answered, post, run


@pytest.mark.parametrize("phase", ["on_requestheaders", "on_request"])
async def test_a_policy_step_that_raises_gives_500_and_nothing_is_forwarded(under: Under, phase: str) -> None:
    def broken(flow: http.HTTPFlow, ex: Exchange) -> None:
        raise RuntimeError("a bug, with a SECRET in it")

    under.insert(phase, "policy", broken)
    flow = post()
    await run(under, flow)
    assert flow.response is not None and flow.response.status_code == 500
    assert orjson.loads(flow.response.content or b"")["error"]["code"] == "internal_error"
    assert b"SECRET" not in (flow.response.content or b"")
    ex = under.recorder.ended[0]
    assert (ex.forwarded is None and ex.outcome == "upstream_error") or ex.refusal is not None
    assert under.errors("culprit", phase) == 1


@pytest.mark.parametrize("phase", ["on_requestheaders", "on_request", "on_responseheaders", "on_response", "on_finish"])
async def test_an_observer_that_raises_is_counted_and_passed_over(under: Under, phase: str) -> None:
    def broken(flow: http.HTTPFlow, ex: Exchange) -> None:
        raise RuntimeError("a bug")

    under.insert(phase, "observer", broken)
    flow = post()
    await run(under, flow)
    assert flow.response is not None and flow.response.status_code == 200
    assert under.recorder.ended[0].outcome == "ok"
    assert under.errors("culprit", phase) == 1


async def test_a_policy_step_refuses_with_its_own_error(under: Under) -> None:
    def refusing(flow: http.HTTPFlow, ex: Exchange) -> None:
        raise Forbidden("not for you")

    under.insert("on_requestheaders", "policy", refusing)
    flow = post()
    await run(under, flow)
    assert flow.response is not None and flow.response.status_code == 403
    assert under.recorder.seen == ["finish"], "no further step of the request ran"
    assert under.recorder.ended[0].outcome == "rejected"
    assert under.errors("culprit", "on_requestheaders") == 0, "a refusal is no bug"


async def test_steps_may_wait(under: Under) -> None:
    gate = asyncio.Event()

    async def waiting(flow: http.HTTPFlow, ex: Exchange) -> None:
        await gate.wait()

    async def refusing(flow: http.HTTPFlow, ex: Exchange) -> None:
        raise BadRequest("late refusal")

    under.insert("on_request", "policy", waiting)
    flow = post()
    under.chain.requestheaders(flow)
    pending = under.chain.request(flow)
    assert pending is not None
    task = asyncio.ensure_future(pending)
    await asyncio.sleep(0)
    assert "request" not in under.recorder.seen
    gate.set()
    await task
    assert "request" in under.recorder.seen

    under.insert("on_request", "policy", refusing)
    flow = post()
    await run(under, flow)
    assert flow.response is not None and flow.response.status_code == 400


async def test_an_exchange_ends_once_whatever_comes_later(under: Under) -> None:
    flow = post()
    await run(under, flow)
    flow.error = mflow.Error("Client disconnected.")
    under.chain.error(flow)
    under.chain.response(flow)
    under.chain.done()
    assert [ex.outcome for ex in under.recorder.ended] == ["ok"]
    assert [r["t"] for r in under.records()] == ["begin", "end"]


async def test_what_a_backend_wrote_never_shows_in_our_error(under: Under) -> None:
    answer = under.chain._stock_answer(None, 502, "unexpected server response: b'SECRET prompt'")
    assert b"SECRET" not in (answer.content or b"")


async def test_the_dialect_of_an_error(under: Under) -> None:
    flow = post("/v1/messages", b"not json")
    await run(under, flow)
    assert flow.response is not None and orjson.loads(flow.response.content or b"")["type"] == "error"


async def test_what_is_in_flight_can_be_listed_and_cancelled(under: Under) -> None:
    flow = post(**{"x-request-id": "mine"})
    under.chain.requestheaders(flow)
    (seen,) = under.chain.in_flight_list()
    assert seen["state"] == "receiving" and seen["request_id"] == "mine" and seen["endpoint"] == "chat"
    under.chain.request(flow)
    (seen,) = under.chain.in_flight_list()
    assert (seen["state"], seen["backend"], seen["model"], seen["age_s"] >= 0) == ("forwarded", "a", "m", True)
    assert under.chain.cancel("nobody") is False
    assert under.chain.cancel(seen["id"]) is True
    assert flow.error is not None, "nobody carries it: the flow is killed"
    under.chain.error(flow)
    assert under.chain.in_flight_list() == [] and under.gateway.backends.in_flight == 0
    assert under.recorder.ended[0].outcome == "rejected"


async def test_the_plan_says_how_to_cancel(under: Under) -> None:
    flow = post()
    under.chain.requestheaders(flow)
    under.chain.request(flow)
    ended: list[Exception] = []
    ex = next(iter(under.chain._live))
    assert ex.plan is not None
    ex.plan.cancel = ended.append
    assert under.chain.cancel(ex.uid) is True and flow.error is None
    assert [str(error) for error in ended] == ["the request was cancelled by an operator"]
    answered(flow)
    under.chain.responseheaders(flow)
    assert under.chain.in_flight_list()[0]["state"] == "replying"
    under.chain.response(flow)
