"""Who leads, who follows, and what becomes of the others when one of them leaves or fails."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.config import Config
from llmtap.core.endpoints import endpoint_of
from llmtap.core.errors import ClientLeft, TooMany, UpstreamFailed
from llmtap.core.plan import Plan
from llmtap.exchange import Exchange
from llmtap.policy.keys import Client
from llmtap.policy.route import Route
from llmtap.single_flight import FlightFill, SingleFlight
from llmtap.wire.request import parse

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
PIECES = [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]


class Desk:
    """A single flight and requests that pass it."""

    def __init__(self, **section: Any) -> None:
        self.followed = 0
        config = Config.model_validate({"single_flight": {"enabled": True, **section}}).single_flight
        self.gate = SingleFlight(config, self._count)
        self.fill = FlightFill()

    def _count(self) -> None:
        self.followed += 1

    def arrive(self, body: dict[str, Any] | None = None, key: str = "a", **attributes: Any) -> tuple[http.HTTPFlow, Exchange]:
        raw = orjson.dumps(BODY if body is None else body)
        flow = tflow.tflow()
        flow.request = http.Request.make("POST", "http://gw/v1/chat/completions", raw)
        endpoint = endpoint_of("/v1/chat/completions")
        assert endpoint is not None
        ex = Exchange("POST", "/v1/chat/completions", endpoint, "openai", "")
        ex.parsed, ex.lane, ex.client, ex.route = parse("chat", raw), True, Client(key), Route("any", "m")
        for name, value in attributes.items():
            setattr(ex, name, value)
        return flow, ex

    def lead(self, *args: Any, **kwargs: Any) -> tuple[http.HTTPFlow, Exchange]:
        flow, ex = self.arrive(*args, **kwargs)
        assert self.gate.on_request(flow, ex) is None and ex.route is not None
        ex.plan = Plan([])
        ex.plan.cancel, ex.plan.resume = lambda error: self.cancelled.append(error), lambda: None
        self.cancelled: list[Exception] = []
        self.fill.on_request(flow, ex)
        return flow, ex

    def follow(self, *args: Any, **kwargs: Any) -> tuple[http.HTTPFlow, Exchange, asyncio.Task[None]]:
        flow, ex = self.arrive(*args, **kwargs)
        waiting = self.gate.on_request(flow, ex)
        assert waiting is not None
        return flow, ex, asyncio.ensure_future(waiting)  # type: ignore[arg-type]

    def head(self, flow: http.HTTPFlow, ex: Exchange, status: int = 200, streams: bool = True) -> Any:
        """The backend's head; the callable that takes the pieces."""
        kind = "text/event-stream" if streams else "application/json"
        flow.response = http.Response.make(status, b"", {"content-type": kind, "x-secret": "no", "retry-after": "3"})
        if streams:
            flow.response.stream = lambda data: data
        self.fill.on_responseheaders(flow, ex)
        return flow.response.stream

    def finish(self, flow: http.HTTPFlow, ex: Exchange, outcome: Any = "ok", error: Any = None) -> None:
        ex.outcome, ex.failure = outcome, error
        self.gate.on_finish(flow, ex)


async def text(ex: Exchange) -> bytes:
    assert ex.plan is not None and ex.plan.body is not None
    return b"".join([piece async for piece in ex.plan.body])


async def test_followers_get_what_has_come_and_what_comes() -> None:
    desk = Desk()
    leading = desk.lead()
    early_flow, early, waiting = desk.follow()
    take = desk.head(*leading)
    await waiting
    assert early.cache == "shared" and early.route is None and early_flow.response is not None
    assert dict(early_flow.response.headers) == {"content-type": "text/event-stream", "retry-after": "3"}
    reading = asyncio.ensure_future(text(early))
    assert take(PIECES[0]) == PIECES[0]
    await asyncio.sleep(0)
    take(PIECES[1])
    _, late, waiting = desk.follow()
    await waiting
    take(PIECES[2])
    take(b"")
    assert await reading == await text(late) == b"".join(PIECES)
    desk.finish(*leading)
    assert desk.followed == 2 and len(desk.gate) == 0
    assert desk.arrive() and desk.lead(), "the next one is a leader"


@pytest.mark.parametrize(
    "other",
    [
        {"body": BODY | {"temperature": 0}},
        {"body": BODY | {"stream": False}},
        {"key": "b"},
        {"cache_wish": b"no-cache"},
        {"lane": False},
        {"direct": (8081, "/x")},
        {"body": BODY | {"stream_options": {"continuous_usage_stats": True}}},
    ],
)
async def test_others_are_on_their_own(other: dict[str, Any]) -> None:
    desk = Desk()
    desk.lead()
    desk.lead(**other)


async def test_who_shares_and_what() -> None:
    everybody = Desk(scope="all")
    everybody.lead()
    everybody.follow(key="b")[2].cancel()
    careful = Desk(only_deterministic=True)
    careful.lead()
    careful.lead()
    careful.lead(BODY | {"seed": 1})
    careful.follow(BODY | {"seed": 1})[2].cancel()
    answered = Desk()
    flow, ex = answered.arrive(route=None)
    assert answered.gate.on_request(flow, ex) is None and len(answered.gate) == 0


async def test_a_whole_reply_errors_too() -> None:
    for status in (200, 400):
        desk = Desk()
        flow, ex = desk.lead(BODY | {"stream": False})
        follower, shared, waiting = desk.follow(BODY | {"stream": False})
        desk.head(flow, ex, status, streams=False)
        assert flow.response is not None
        flow.response.content = b'{"a":1}'
        desk.fill.on_response(flow, ex)
        desk.finish(flow, ex, "ok" if status == 200 else "rejected")
        await waiting
        assert follower.response is not None and follower.response.status_code == status
        assert follower.response.content == b'{"a":1}' and shared.cache == "shared"


async def test_the_leaders_failure_is_everybodys() -> None:
    desk = Desk()
    leading = desk.lead()
    waits = [desk.follow()[2] for _ in range(3)]
    error = TooMany("queue full", code="queue_full")
    desk.finish(*leading, outcome="rejected", error=error)
    for waiting in waits:
        with pytest.raises(TooMany) as caught:
            await waiting
        assert caught.value is not error and caught.value.code == "queue_full" and caught.value.retry_after_s == 1


async def test_a_stream_that_breaks_breaks_for_all() -> None:
    desk = Desk()
    leading = desk.lead()
    _, ex, waiting = desk.follow()
    desk.head(*leading)(PIECES[0])
    await waiting
    desk.finish(*leading, outcome="upstream_error", error=UpstreamFailed("gone"))
    assert ex.plan is not None and ex.plan.body is not None
    assert await anext(ex.plan.body) == PIECES[0]
    with pytest.raises(UpstreamFailed, match="gone"):
        await anext(ex.plan.body)


async def test_a_leader_that_leaves_before_anything_came_is_followed_by_another() -> None:
    desk = Desk()
    leading = desk.lead()
    first, second = desk.follow(), desk.follow()
    await asyncio.sleep(0)
    desk.finish(*leading, outcome="client_abort", error=ClientLeft("gone"))
    await first[2]
    assert first[1].cache == "bypass" and first[1].route is not None and first[1].flight is not None, "it leads now"
    first[1].plan = Plan([])
    take = desk.head(first[0], first[1])
    await second[2]
    take(PIECES[0])
    take(b"")
    assert await text(second[1]) == PIECES[0]


async def test_the_backend_is_read_on_while_anybody_is_left() -> None:
    desk = Desk()
    flow, ex = desk.lead()
    assert ex.plan is not None and not ex.plan.shared
    one, two = desk.follow(), desk.follow()
    await asyncio.sleep(0)
    assert ex.plan.shared
    take = desk.head(flow, ex)
    await asyncio.gather(one[2], two[2])
    take(PIECES[0])
    ex.plan.left_at = 1.0  # the leader's client has gone
    desk.finish(one[0], one[1], "client_abort")
    assert ex.plan.shared and desk.cancelled == []
    desk.finish(two[0], two[1], "client_abort")
    assert not ex.plan.shared and [type(error) for error in desk.cancelled] == [ClientLeft]


async def test_a_leader_that_stays_is_not_stopped() -> None:
    desk = Desk()
    flow, ex = desk.lead()
    follower = desk.follow()
    await asyncio.sleep(0)
    desk.head(flow, ex)
    await follower[2]
    desk.finish(follower[0], follower[1], "client_abort")
    assert ex.plan is not None and not ex.plan.shared and desk.cancelled == []


async def test_a_whole_reply_that_only_followers_wait_for() -> None:
    desk = Desk()
    body = BODY | {"stream": False}
    flow, ex = desk.lead(body)
    follower = desk.follow(body)
    await asyncio.sleep(0)
    desk.head(flow, ex, streams=False)
    assert flow.response is not None
    flow.response.data.content = b"all of it"  # the lane has read it to its end, and then noticed that nobody is there
    desk.finish(flow, ex, "client_abort")
    await follower[2]
    assert follower[0].response is not None and follower[0].response.content == b"all of it"


async def test_one_who_leaves_while_waiting() -> None:
    desk = Desk()
    desk.lead()
    flow, ex, waiting = desk.follow()
    await asyncio.sleep(0)
    desk.gate.client_left("another")
    desk.gate.client_left(flow.client_conn.id)
    with pytest.raises(ClientLeft):
        await waiting
    desk.finish(flow, ex, "client_abort")
    assert desk.gate._waiting == {} and ex.following is None


def test_other_rules_at_once() -> None:
    desk = Desk()
    desk.gate.reload(Config.model_validate({"single_flight": {"scope": "all"}}).single_flight)
    desk.lead()
    flow, ex = desk.arrive(key="b")
    waiting = desk.gate.on_request(flow, ex)
    assert waiting is not None
    waiting.close()  # type: ignore[attr-defined]
