"""The hooks of flows, under a real addon manager: order, ends of every kind, own answers, the door."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from mitmproxy import flow as mflow
from mitmproxy import http
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketData, WebSocketMessage

from llmtap.chain import Chain
from llmtap.core.errors import Unauthorized
from support.chain import Under, answered, post, run


async def test_a_request_passes_all_phases_in_order(under: Under) -> None:
    flow = post()
    await run(under, flow)
    assert under.recorder.seen == ["requestheaders", "request", "finish"]
    ex = under.recorder.ended[0]
    assert ex.outcome == "ok" and ex.backend == "a" and ex.forwarded is not None
    assert flow.response is not None and flow.response.headers["x-request-id"] == ex.uid
    assert flow.response.headers["x-llmtap-backend"] == "a" and flow.response.headers["x-llmtap-attempts"] == "0"
    assert [r["t"] for r in under.records()] == ["begin", "end"]


async def test_a_client_that_leaves(under: Under) -> None:
    flow = post()
    under.chain.requestheaders(flow)
    under.chain.request(flow)
    flow.error = mflow.Error("Client disconnected.")
    under.chain.error(flow)
    ex = under.recorder.ended[0]
    assert (ex.outcome, ex.status) == ("client_abort", 499)


@pytest.mark.parametrize(("last", "outcome"), [(b"data: [DONE]\n\n", "ok"), (b"", "client_abort")])
async def test_a_client_that_hangs_up_after_the_streams_last_event_has_it_all(under: Under, last: bytes, outcome: str) -> None:
    flow = post(body=b'{"model":"m","messages":[],"stream":true}')
    under.chain.requestheaders(flow)
    under.chain.request(flow)
    flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
    under.chain.responseheaders(flow)
    assert callable(flow.response.stream)
    flow.response.stream(b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n' + last)
    flow.error = mflow.Error("Client disconnected.")
    under.chain.error(flow)
    assert [ex.outcome for ex in under.recorder.ended] == [outcome]


async def test_an_upstream_that_dies(under: Under) -> None:
    flow = post()
    under.chain.requestheaders(flow)
    under.chain.request(flow)
    flow.error = mflow.Error("server closed connection")
    under.chain.error(flow)
    ex = under.recorder.ended[0]
    assert (ex.outcome, ex.status, ex.error_type) == ("upstream_error", 502, "upstream_error")
    answer = under.chain._stock_answer(flow.request, 502, "server closed connection")
    assert answer.status_code == 502 and answer.headers["x-request-id"] == ex.uid
    assert orjson.loads(answer.content or b"")["error"]["code"] == "upstream_error"


async def test_flows_from_files_are_left_alone(under: Under) -> None:
    flow = post()
    flow.live = False
    under.chain.requestheaders(flow)
    under.chain.request(flow)
    under.chain.response(flow)
    assert under.recorder.seen == [] and flow.response is None


async def test_own_endpoints_are_no_exchanges(under: Under) -> None:
    flow = tflow.tflow()
    flow.request = http.Request.make("GET", "http://gateway/health")
    flow.live = True
    under.chain.requestheaders(flow)
    assert flow.response is not None and flow.response.content == b'{"status":"ok"}'
    under.chain.response(flow)
    assert under.recorder.seen == [] and under.records() == []


async def test_a_stream_cut_without_its_end_is_an_upstream_error(under: Under) -> None:
    flow = post(body=b'{"model":"m","messages":[],"stream":true}')
    under.chain.requestheaders(flow)
    under.chain.request(flow)
    flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
    under.chain.responseheaders(flow)
    assert callable(flow.response.stream)
    flow.response.stream(b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n')
    flow.response.stream(b"")
    under.chain.response(flow)
    ex = under.recorder.ended[0]
    assert ex.outcome == "upstream_error" and ex.summary is not None and ex.summary.choices[0].content == "Hel"


@pytest.mark.parametrize(
    ("by_client", "code", "outcome"),
    [
        (True, 1000, "ok"),
        (True, 4001, "ok"),
        (True, 1006, "client_abort"),
        (False, 1000, "ok"),
        (False, 1005, "ok"),
        (False, 1006, "upstream_error"),
        (False, 1011, "upstream_error"),
        (False, 4001, "upstream_error"),
    ],
)
async def test_a_websocket_ends_once_and_with_its_end(under: Under, by_client: bool, code: int, outcome: str) -> None:
    flow = post()
    flow.request.method, flow.request.path, flow.request.content = "GET", "/v1/realtime", b""
    under.chain.requestheaders(flow)
    waiting = under.chain.request(flow)
    assert waiting is None
    flow.response = http.Response.make(101)
    under.chain.responseheaders(flow)
    flow.websocket = WebSocketData()
    under.chain.response(flow)
    assert under.recorder.ended == []
    for from_client in (True, False, False):
        flow.websocket.messages.append(WebSocketMessage(1, from_client, b"abc"))
        under.chain.websocket_message(flow)
    flow.websocket.closed_by_client, flow.websocket.close_code = by_client, code
    under.chain.websocket_end(flow)
    under.chain.websocket_end(flow)
    (ex,) = under.recorder.ended
    assert (ex.outcome, ex.status, ex.chunks, ex.reply_bytes) == (outcome, 101, 2, 6)


def test_without_a_configuration_nothing_is_let_through() -> None:
    chain = Chain()
    flow = post()
    chain.requestheaders(flow)
    assert flow.response is not None and flow.response.status_code == 500


def test_names_do_not_collide_with_hooks() -> None:
    """An attribute of the addon that is called like a hook breaks mitmproxy's dispatch."""
    from mitmproxy import hooks

    public = {name for name in vars(Chain()) if not name.startswith("_")} | {n for n in dir(Chain) if not n.startswith("_")}
    life = {"load", "configure", "running", "done"}
    expected = life | {"requestheaders", "request", "responseheaders", "response", "error", "server_connect_error"}
    expected |= {"websocket_message", "websocket_end", "client_disconnected"}
    assert public & set(hooks.all_hooks) == expected
    assert "addons" not in public


# ---- the door


class Door:
    """An `Auth` that does what the test says."""

    name = "auth"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def admit(self, flow: http.HTTPFlow, path: str | None) -> None:
        raise self.error


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/metrics", "/v1/../metrics"])
async def test_a_look_at_the_key_that_fails_lets_nobody_in(under: Under, path: str, caplog: pytest.LogCaptureFixture) -> None:
    under.gateway.auth = Door(RuntimeError("boom"))  # type: ignore[assignment]
    flow = post(path)
    flow.request.method = "GET" if path == "/metrics" else "POST"
    await run(under, flow)
    assert flow.response is not None and flow.response.status_code == 500
    assert b"boom" not in (flow.response.content or b"")
    assert under.errors("auth", "on_requestheaders") == 1 and "boom" in caplog.text
    assert all(ex.plan is None for ex in under.recorder.ended)


async def test_whoever_is_shut_out_goes_no_further(under: Under) -> None:
    under.gateway.auth = Door(Unauthorized("no"))  # type: ignore[assignment]
    flow = post()
    await run(under, flow)
    assert flow.response is not None and flow.response.status_code == 401
    assert "requestheaders" not in under.recorder.seen and under.recorder.ended[0].outcome == "rejected"
    poll = post("/metrics")
    poll.request.method = "GET"
    await run(under, poll)
    assert poll.response is not None and poll.response.status_code == 401
    assert len(under.recorder.ended) == 1, "a poll without a key is no exchange"
    assert under.gateway.registry.get_sample_value("llmtap_refusals_total", {"code": "invalid_api_key"}) == 2


async def test_a_client_that_leaves_while_it_waits(under: Under) -> None:
    under.gateway.backends["a"].max_concurrency = 1
    first, second = post(), post()
    under.chain.requestheaders(first)
    under.chain.request(first)
    under.chain.requestheaders(second)
    waiting = asyncio.ensure_future(under.chain.request(second))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert under.chain._stats()["waiting"] == 1 and under.chain.in_flight_list()[1]["state"] == "waiting"
    under.chain.client_disconnected(second.client_conn)
    await waiting
    assert under.chain._stats()["waiting"] == 0 and second.response is not None
    under.chain.response(second)
    assert under.recorder.ended[0].outcome == "client_abort"
    answered(first)
    under.chain.response(first)
    assert under.gateway.backends.in_flight == 0
