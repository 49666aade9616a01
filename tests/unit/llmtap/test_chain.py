"""The dispatcher: order, fail closed for policy, open for observers, an end exactly once. Run under a real addon manager."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from mitmproxy import flow as mflow
from mitmproxy import http
from mitmproxy.test import taddons, tflow
from mitmproxy.websocket import WebSocketData, WebSocketMessage

from llmtap.assembly import Gateway, Step, steps_of
from llmtap.chain import Chain
from llmtap.core.errors import BadRequest, ConfigError, Forbidden, Unauthorized
from llmtap.exchange import Exchange
from llmtap.spool.reader import read


class Recorder:
    """An observer that notes what happened."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.ended: list[Exchange] = []

    def on_requestheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self.seen.append("requestheaders")

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self.seen.append("request")

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self.seen.append("finish")
        self.ended.append(ex)


class Under:
    """A chain under mitmproxy's test master, with one backend that is never asked."""

    def __init__(self, chain: Chain, recorder: Recorder, data: Path) -> None:
        self.chain, self.recorder, self.data = chain, recorder, data

    @property
    def gateway(self) -> Gateway:
        assert self.chain._gateway is not None
        return self.chain._gateway

    def insert(self, phase: str, kind: Any, call: Any, name: str = "culprit") -> None:
        self.gateway.steps[phase].insert(0, Step(name, kind, call))

    def errors(self, addon: str, hook: str) -> float:
        return self.gateway.registry.get_sample_value("llmtap_hook_errors_total", {"addon": addon, "hook": hook}) or 0.0

    def records(self) -> list[dict[str, Any]]:
        return [
            orjson.loads(item)
            for path in sorted(self.data.glob("spool/*"))
            for _, item in read(path, 0)
            if isinstance(item, bytes)
        ]


@pytest.fixture
async def under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("LLMTAP_CONFIG",):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "llmtap.yaml"
    backends = [{"name": "a", "url": "http://127.0.0.1:9", "models": ["m"]}]
    config.write_text(
        yaml.safe_dump({"backends": backends, "capture": {"dir": str(tmp_path)}, "logging": {"request_log": False}})
    )
    chain = Chain()
    with taddons.context(chain, options=None, loadcore=False) as context:
        # options that mitmproxy's own addons declare, as far as the chain sets them
        kinds: dict[str, type] = {"connection_strategy": str, "block_global": bool, "onboarding": bool, "body_size_limit": str}
        for name, kind in kinds.items():
            if name not in context.options:
                context.options.add_option(name, kind, kind(), "test")
        context.configure(chain, llmtap_config=str(config), llmtap_writer=False)
        assert chain._gateway is not None
        recorder = Recorder()
        for phase, steps in steps_of([("observer", recorder)]).items():
            chain._gateway.steps[phase].extend(steps)
        yield Under(chain, recorder, tmp_path)
        chain.done()


def post(path: str = "/v1/chat/completions", body: bytes = b'{"model":"m","messages":[]}', **headers: str) -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.request = http.Request.make("POST", f"http://gateway{path}", body, {"content-type": "application/json", **headers})
    flow.live = True
    return flow


def answered(flow: http.HTTPFlow, status: int = 200, body: bytes = b'{"choices":[]}') -> None:
    flow.response = http.Response.make(status, body, {"content-type": "application/json"})


async def run(under: Under, flow: http.HTTPFlow) -> None:
    """A flow from its head to its end, as mitmproxy drives it."""
    chain = under.chain
    chain.requestheaders(flow)
    waiting = chain.request(flow)
    if waiting is not None:
        await waiting
    if flow.response is None:
        answered(flow)
    waiting = chain.responseheaders(flow)
    if waiting is not None:
        await waiting
    chain.response(flow)


async def test_a_request_passes_all_phases_in_order(under: Under) -> None:
    flow = post()
    await run(under, flow)
    assert under.recorder.seen == ["requestheaders", "request", "finish"]
    ex = under.recorder.ended[0]
    assert ex.outcome == "ok" and ex.backend == "a" and ex.forwarded is not None
    assert flow.response is not None and flow.response.headers["x-request-id"] == ex.uid
    assert flow.response.headers["x-llmtap-backend"] == "a" and flow.response.headers["x-llmtap-attempts"] == "0"
    assert [r["t"] for r in under.records()] == ["begin", "end"]


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


async def test_shutdown_ends_what_is_open_as_lost(under: Under) -> None:
    flow = post()
    under.chain.requestheaders(flow)
    under.chain.request(flow)
    under.chain.done()
    flow.error = mflow.Error("Client disconnected.")
    under.chain.error(flow)
    assert [ex.outcome for ex in under.recorder.ended] == ["lost"]
    assert under.records()[-1]["outcome"] == "lost"


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


async def test_what_a_backend_wrote_never_shows_in_our_error(under: Under) -> None:
    answer = under.chain._stock_answer(None, 502, "unexpected server response: b'SECRET prompt'")
    assert b"SECRET" not in (answer.content or b"")


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


async def test_the_dialect_of_an_error(under: Under) -> None:
    flow = post("/v1/messages", b"not json")
    await run(under, flow)
    assert flow.response is not None and orjson.loads(flow.response.content or b"")["type"] == "error"


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


# ---- another configuration


async def test_a_gateway_that_does_not_run_takes_no_other_configuration(under: Under) -> None:
    with pytest.raises(ConfigError, match="not running"):
        under.chain.reload(under.gateway.config)
    assert under.chain.reload_file() is False


async def test_what_began_before_ends_as_it_began(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, old = under.chain, under.gateway
    chain._running = True
    flow = post()
    chain.requestheaders(flow)
    assert chain.request(flow) is None
    stopped: list[Gateway] = []
    monkeypatch.setattr(Gateway, "stop", lambda self, others=(): stopped.append(self))
    chain.reload(old.config.model_copy(update={"backends": ()}))
    assert under.gateway is not old and stopped == [] and old.after is under.gateway
    refused = post()
    chain.requestheaders(refused)
    assert chain.request(refused) is None
    assert refused.response is not None and refused.response.status_code == 503, "nobody is there for what is new"
    chain.response(refused)
    answered(flow)
    chain.responseheaders(flow)
    chain.response(flow)
    assert [ex.outcome for ex in under.recorder.ended] == ["ok"] and stopped == [old]
    monkeypatch.undo()
    old.health.stop()
    under.gateway.health.stop()


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
