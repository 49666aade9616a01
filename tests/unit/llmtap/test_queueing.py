"""A place for every request: what goes on the wire, who waits, what a failure leads to, and that every place is given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mitmproxy import connection, http
from mitmproxy.test import tflow

from llmtap.core.config import Config
from llmtap.core.endpoints import OTHER, endpoint_of
from llmtap.core.errors import ApiError, Cancelled, ClientLeft, NoHealthyBackend, QueueTimeout, TooMany
from llmtap.core.plan import Target
from llmtap.exchange import Exchange
from llmtap.policy.backends import Backend, Backends
from llmtap.policy.route import Route
from llmtap.queueing import Queueing
from llmtap.wire.request import parse


class Under:
    """Queueing over some backends, and what it told."""

    def __init__(self, *backends: Backend, aliases: Any = None, fallbacks: Any = None, total: int | None = None, **config: Any):
        self.backends = Backends(backends, aliases=aliases, fallbacks=fallbacks, max_concurrency=total)
        self.failures: list[tuple[str, str]] = []
        self.worked: list[str] = []
        self.waited: list[Exchange] = []
        self.step = Queueing(
            Config.model_validate(config),
            self.backends,
            lambda name, reason: self.failures.append((name, reason)),
            lambda backend: self.worked.append(backend.name),
            self.waited.append,
        )

    def coming(
        self, model: str | None = "m", path: str = "/v1/chat/completions", **headers: str
    ) -> tuple[http.HTTPFlow, Exchange]:
        flow = tflow.tflow()
        body = b'{"model": "%b", "messages": []}' % (model or "").encode()
        flow.request = http.Request.make("POST", f"http://gateway:8000{path}", body, {"host": "gateway:8000"})
        for name, value in headers.items():
            flow.request.headers[name.replace("_", "-")] = value
        ex = Exchange("POST", path, endpoint_of(path.partition("?")[0]) or OTHER, "openai", "127.0.0.1")
        ex.parsed = parse("chat", body)
        ex.lane = True
        ex.route = Route("any", model)
        return flow, ex

    def sends(self, *args: Any, **headers: str) -> tuple[http.HTTPFlow, Exchange]:
        """One that finds room at once."""
        flow, ex = self.coming(*args, **headers)
        assert self.step.on_request(flow, ex) is None and ex.plan is not None
        return flow, ex

    def waits(self, *args: Any, **headers: str) -> tuple[http.HTTPFlow, Exchange, asyncio.Task[None]]:
        flow, ex = self.coming(*args, **headers)
        waiting = self.step.on_request(flow, ex)
        assert waiting is not None
        return flow, ex, asyncio.ensure_future(waiting)  # type: ignore[arg-type]

    def ends(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        ex.finalise("ok", 0.0)
        self.step.on_finish(flow, ex)

    def answers(self, flow: http.HTTPFlow, ex: Exchange, status: int) -> None:
        flow.response = http.Response.make(status)
        self.step.on_responseheaders(flow, ex)


def backend(name: str, port: int = 1, **more: Any) -> Backend:
    return Backend(name, "10.0.0.1", port, **{"models": ("m",), "state": "up", **more})


# ---- on the wire


def test_where_it_goes_and_what_it_takes_along() -> None:
    under = Under(backend("a", 8081, api_key="backend-key"))
    flow, ex = under.coming(
        authorization="Bearer client-key", x_api_key="client-key", x_llmtap_tags="t", accept_encoding="br", x_session_id="s"
    )
    ex.lane = False
    under.step.on_request(flow, ex)
    sent = flow.request
    assert (sent.host, sent.port, sent.scheme) == ("10.0.0.1", 8081, "http")
    assert sent.headers["host"] == "10.0.0.1:8081" and sent.headers["accept-encoding"] == "identity"
    assert sent.headers["authorization"] == "Bearer backend-key" and "x-api-key" not in sent.headers
    assert "x-llmtap-tags" not in sent.headers and "x-session-id" not in sent.headers
    assert sent.headers["x-request-id"] == ex.uid
    assert ex.backend == "a" and under.backends["a"].in_flight == 1
    under.ends(flow, ex)
    under.ends(flow, ex)
    assert under.backends["a"].in_flight == 0


def test_the_lane_puts_the_backends_key_on_itself() -> None:
    under = Under(backend("a", api_key="backend-key"))
    flow, ex = under.sends(authorization="Bearer client-key")
    assert "authorization" not in flow.request.headers and flow.request.headers["host"] == "gateway:8000"
    assert ex.plan is not None and ex.plan.candidates[0].headers == ((b"authorization", b"Bearer backend-key"),)


def test_without_a_backend_key_the_clients_own_is_passed_in_the_form_vllm_reads() -> None:
    flow, _ = Under(backend("a")).sends(x_api_key="client-key")
    assert flow.request.headers["authorization"] == "Bearer client-key"


def test_ipv6_and_tls_in_a_stock_mode() -> None:
    under = Under(Backend("a", "::1", 443, tls=True, state="up"))
    flow, ex = under.coming()
    ex.lane = False
    under.step.on_request(flow, ex)
    assert flow.request.scheme == "https" and flow.request.headers["host"] == "[::1]:443"


def test_an_alias_is_sent_under_the_served_name() -> None:
    under = Under(backend("a", models=("org/served",)), aliases={"nick": "org/served"})
    flow, ex = under.sends("nick")
    assert flow.request.content == b'{"model": "org/served", "messages": []}' and ex.model == "nick"
    assert flow.request.headers["content-length"] == str(len(flow.request.content))


def test_an_alias_in_a_query() -> None:
    under = Under(backend("a", models=("org/served",)), aliases={"nick": "org/served"})
    flow, ex = under.coming("nick", "/v1/realtime?model=nick&x=1")
    under.step.on_request(flow, ex)
    assert flow.request.path == "/v1/realtime?model=org%2Fserved&x=1"


def test_a_port_beside_the_backends_has_no_place_and_no_retry() -> None:
    under = Under(backend("a"), backend("b"))
    flow, ex = under.coming(None)
    assert ex.route is not None
    ex.route.only = Backend("port-9000", "127.0.0.1", 9000)
    assert under.step.on_request(flow, ex) is None
    assert ex.plan is not None and ex.plan.candidates[0].port == 9000 and ex.plan.retries == 0 and ex.backend == "port-9000"
    under.answers(flow, ex, 500)
    under.ends(flow, ex)
    assert under.failures == [] and under.backends.in_flight == 0


def test_what_refers_to_a_response_goes_home_while_there_is_room() -> None:
    under = Under(backend("a"), backend("b", max_concurrency=1))
    for expected in ("b", "a"):
        flow, ex = under.coming()
        assert ex.route is not None
        ex.route.home = "b"
        under.step.on_request(flow, ex)
        assert ex.backend == expected


# ---- waiting


async def test_a_full_backend_makes_requests_wait_in_order() -> None:
    under = Under(backend("a", max_concurrency=1))
    first = under.sends()
    second, third = under.waits(), under.waits()
    await asyncio.sleep(0)
    assert under.step.waiting == 2 and under.waited == [second[1], third[1]] and second[1].plan is None
    under.ends(*first)
    await second[2]
    assert second[1].plan is not None and second[1].queue_s > 0 and not third[2].done()
    under.ends(*second[:2])
    await third[2]
    under.ends(*third[:2])
    assert under.backends.in_flight == 0 and under.step.waiting == 0


async def test_a_full_queue() -> None:
    under = Under(backend("a", max_concurrency=1), queue={"max_waiting": 1})
    under.sends()
    waiting = under.waits()
    await asyncio.sleep(0)
    with pytest.raises(TooMany) as caught:
        await under.waits()[2]
    assert caught.value.code == "queue_full" and caught.value.status == 429
    under.step.client_left(waiting[0].client_conn.id)
    with pytest.raises(ClientLeft):
        await waiting[2]


async def test_patience_ends() -> None:
    under = Under(backend("a", max_concurrency=1), queue={"timeout_s": 0.01})
    first = under.sends()
    flow, ex, task = under.waits()
    with pytest.raises(QueueTimeout) as caught:
        await task
    assert caught.value.status == 503 and caught.value.code == "queue_timeout" and caught.value.retry_after_s
    under.ends(flow, ex)
    under.ends(*first)
    assert under.backends.in_flight == 0 and under.step.waiting == 0


async def test_who_leaves_takes_no_place_even_in_the_same_moment() -> None:
    under = Under(backend("a", max_concurrency=1))
    first = under.sends()
    flow, _, task = under.waits()
    await asyncio.sleep(0)
    under.step.client_left("somebody else")
    under.step.client_left(flow.client_conn.id)
    under.ends(*first)  # before the waiting task has run again
    with pytest.raises(ClientLeft):
        await task
    assert under.backends.in_flight == 0


async def test_a_request_that_ended_while_it_was_given_a_place_gives_it_back() -> None:
    under = Under(backend("a", max_concurrency=1))
    first = under.sends()
    flow, ex, task = under.waits()
    await asyncio.sleep(0)
    under.ends(*first)
    under.ends(flow, ex)
    with pytest.raises(ClientLeft):
        await task
    assert under.backends.in_flight == 0


async def test_an_exchange_that_ends_while_it_waits_waits_no_more() -> None:
    under = Under(backend("a", max_concurrency=1))
    under.sends()
    flow, ex, task = under.waits()
    await asyncio.sleep(0)
    under.ends(flow, ex)
    with pytest.raises(ClientLeft):
        await task
    assert under.step.waiting == 0


async def test_a_cancelled_task_leaves_no_trace() -> None:
    under = Under(backend("a", max_concurrency=1))
    first = under.sends()
    waiting, granted, caught = under.waits()[2], under.waits()[2], under.waits()[2]
    await asyncio.sleep(0)
    waiting.cancel()
    under.ends(*first)
    granted.cancel()
    results = await asyncio.gather(waiting, granted, return_exceptions=True)
    assert [type(r) for r in results] == [asyncio.CancelledError] * 2
    await caught
    assert under.backends.in_flight == 1 and under.step.waiting == 0


async def test_an_operator_ends_a_wait() -> None:
    under = Under(backend("a", max_concurrency=1))
    _, running = under.sends()
    _, ex, task = under.waits()
    await asyncio.sleep(0)
    assert under.step.cancel(running, Cancelled("x")) is False and under.step.cancel(ex, Cancelled("x")) is True
    with pytest.raises(Cancelled):
        await task


async def test_those_who_wait_for_a_backend_that_goes_away_are_told() -> None:
    under = Under(backend("a", max_concurrency=1))
    under.sends()
    _, _, task = under.waits()
    await asyncio.sleep(0)
    under.backends.set_state("a", "down", "", 0.0)
    with pytest.raises(NoHealthyBackend):
        await task


async def test_a_stopped_backend_is_asked_for_and_waited_for_as_long_as_it_takes() -> None:
    under = Under(backend("a", state="stopped", starts_within_s=60.0), queue={"timeout_s": 0.01})
    wanted: list[str] = []
    under.backends.wanted = lambda b: wanted.append(b.name)
    _, ex, task = under.waits()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(task), 0.1)
    assert wanted == ["a"]
    under.backends.set_state("a", "up", "", 0.0)
    await task
    assert ex.backend == "a"


# ---- another one


def after(under: Under, ex: Exchange, *reasons: str) -> list[str | None]:
    """The backends an exchange is given after these failures."""
    assert ex.plan is not None and ex.plan.more is not None
    found: list[str | None] = []
    for reason in reasons:
        ex.plan.attempts += 1
        target = ex.plan.more(reason)  # type: ignore[arg-type]
        found.append(target.backend if target is not None else None)
    return found


def test_a_retry_takes_the_place_along() -> None:
    under = Under(backend("a"), backend("b"), backend("c"), backend("d"))
    flow, ex = under.sends()
    first = ex.backend
    others = after(under, ex, "refused", "reset", "closed")
    assert others[2] is None, "two retries by default" and first not in others
    assert {b.name: b.in_flight for b in under.backends if b.in_flight} == {others[1]: 1} and ex.backend == others[1]
    under.ends(flow, ex)
    assert under.backends.in_flight == 0 and ex.plan is not None and ex.plan.more is None


def test_a_retry_goes_to_who_is_good_now() -> None:
    under = Under(backend("a"), backend("b"), backend("c"))
    _, ex = under.sends()
    rest = [b.name for b in under.backends if b.name != ex.backend]
    under.backends.set_state(rest[0], "down", "", 0.0)
    assert after(under, ex, "refused", "refused") == [rest[1], None]


def test_a_fallback_gets_the_last_attempt_under_its_own_name() -> None:
    under = Under(*(backend(n) for n in "abc"), backend("z", models=("small",)), fallbacks={"m": ["small"]})
    flow, ex = under.sends()
    assert ex.plan is not None and ex.plan.more is not None
    ex.plan.attempts = 1
    second = ex.plan.more("reset")
    ex.plan.attempts = 2
    third = ex.plan.more("reset")
    assert second is not None and second.body is None and second.backend in "abc"
    assert third is not None and third.backend == "z" and third.body == b'{"model": "small", "messages": []}'
    assert flow.request.content == b'{"model": "m", "messages": []}'


def test_a_fallback_is_used_at_once_when_nobody_serves_the_model() -> None:
    under = Under(backend("a", state="down"), backend("z", models=("small",)), fallbacks={"m": ["small"]})
    flow, ex = under.sends()
    assert ex.backend == "z" and flow.request.content == b'{"model": "small", "messages": []}'
    under.backends.set_state("a", "up", "", 0.0)
    assert ex.plan is not None and ex.plan.more is not None
    ex.plan.attempts = 1
    back = ex.plan.more("reset")
    assert back is not None and back.backend == "a" and back.body == b'{"model": "m", "messages": []}'


def test_what_is_not_idempotent_is_sent_once() -> None:
    under = Under(backend("a"), backend("b"))
    flow, ex = under.coming()
    assert ex.route is not None
    ex.route.idempotent = False
    under.step.on_request(flow, ex)
    assert ex.plan is not None and (ex.plan.retries, ex.plan.more, ex.plan.idempotent) == (0, None, False)


def test_a_lone_backend_is_not_waited_with() -> None:
    _, ex = Under(backend("a")).sends()
    assert ex.plan is not None and ex.plan.more is None


# ---- how it went


@pytest.mark.parametrize(
    ("lane", "status", "told"), [(True, 200, 0), (True, 404, 0), (True, 500, 1), (True, 503, 0), (False, 503, 1), (False, 502, 1)]
)
def test_bad_answers_count_once(lane: bool, status: int, told: int) -> None:
    under = Under(backend("a"))
    flow, ex = under.sends()
    ex.lane = lane
    under.answers(flow, ex, status)
    assert under.failures == [("a", "status")] * told and (under.backends["a"].last_ok > 0) == (status < 500)


def test_good_answers_are_told_of_those_in_doubt_only() -> None:
    under = Under(backend("a"))
    for _ in range(2):
        under.answers(*under.sends(), 200)
    assert under.worked == []
    under.backends["a"].failures = 1
    under.answers(*under.sends(), 404)
    under.backends["a"].failures = 0
    under.backends.set_state("a", "trial", "", 0.0)
    under.answers(*under.sends(), 200)
    assert under.worked == ["a", "a"]


def test_failures_are_reported() -> None:
    under = Under(backend("a"))
    _, ex = under.sends()
    assert ex.plan is not None and ex.plan.on_failure is not None
    ex.plan.on_failure(Target("a", "h", 1), "refused")
    assert under.failures == [("a", "refused")]


def test_nothing_without_a_route() -> None:
    under = Under(backend("a"))
    flow, ex = under.coming()
    ex.route = None
    assert under.step.on_request(flow, ex) is None and ex.plan is None
    flow.response = http.Response.make(200)
    under.step.on_responseheaders(flow, ex)
    under.step.on_finish(flow, ex)
    assert isinstance(flow.client_conn, connection.Client) and issubclass(QueueTimeout, ApiError)
