"""Corners of the way to a backend; retries, timeouts and stale connections are in tests/integration/test_lane_faults.py."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.errors import Cancelled
from llmtap.core.plan import Plan, Target
from llmtap.lane.attempts import Attempts, default_plan
from llmtap.lane.inbound import Inbound
from llmtap.lane.upstream import Failure
from support.lane import Peer, Streamer, echo, post, response, running_lane, until, upstream


class Fake:
    """A client connection, as far as it is asked for here."""

    lane: Any


def client(upstream: Any, address: tuple[str, int]) -> Any:
    return SimpleNamespace(upstream=upstream, placeholder=SimpleNamespace(address=address))


def test_without_a_plan_a_request_goes_where_it_says_but_never_back_here() -> None:
    flow = tflow.tflow()
    flow.request.host, flow.request.port = "h", 22
    (target,) = default_plan(flow, client(("http", "h", 22), ("h", 22))).candidates
    assert (target.host, target.port, target.tls) == ("h", 22, False)
    assert default_plan(flow, client(None, ("other", 1))).candidates == [target]
    assert default_plan(flow, client(None, ("h", 22))).candidates == []


async def test_a_failure_is_noted_once_and_its_answer_has_the_right_status() -> None:
    async with running_lane() as lane:
        noted: list[tuple[str, str]] = []
        plan = Plan([Target("a", "h", 1)], on_failure=lambda target, reason: noted.append((target.backend, reason)))
        plan.served_by = plan.candidates[0]
        fake = Fake()
        fake.lane = lane.lane
        attempts = Attempts(cast(Any, fake), Inbound(), plan)
        assert attempts.failed(Failure("reset", "broke")).status == 502
        assert attempts.failed(Failure("first_byte_timeout", "late")).status == 504
        assert noted == [("a", "reset"), ("a", "first_byte_timeout")]
        attempts.close()
        gone = weakref.ref(fake)
        gc.disable()
        try:
            del attempts, fake
            assert gone() is None  # by reference counting alone
        finally:
            gc.enable()


@pytest.mark.parametrize("keep", [True, False])
async def test_a_pooled_connection_serves_the_next_client(keep: bool) -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        for _ in range(3):
            await lane.ask(post(b"{}", extra="" if keep else "Connection: close\r\n"))
        assert up.connections == 1 and lane.rec.plan().attempts == 1 and lane.rec.plan().sent_at is not None


class Chooser:
    """A plan whose further candidates are chosen when they are needed, put into the place of the recorder's."""

    name = "test.chooser"

    def __init__(self, lane: Any, first: Target, *further: Target, **options: Any) -> None:
        self.asked: list[str] = []
        self.further = list(further)
        self.lane, self.first, self.options = lane, first, options
        self.plans: list[Plan] = []

    def request(self, flow: http.HTTPFlow) -> None:
        plan = Plan([self.first], more=self.more, **self.options)
        self.lane.rec.plans[flow] = plan
        self.plans.append(plan)

    def more(self, reason: str) -> Target | None:
        self.asked.append(reason)
        return self.further.pop(0) if self.further else None


async def die(peer: Peer) -> None:
    await peer.message()
    peer.close()


async def busy(peer: Peer) -> None:
    while True:
        await peer.message()
        peer.send(response(b"busy", b"503 Service Unavailable"))


async def test_the_next_candidate_is_chosen_when_it_is_needed() -> None:
    async with upstream(die) as a, upstream(busy) as b, upstream(echo) as c, running_lane() as lane:
        chooser = Chooser(lane, a.target(), b.target("b"), c.target("c"))
        lane.master.addons.add(chooser)
        head, body = await lane.ask(post(b"{}"))
        assert b" 200 " in head and body == b'{"ok":1}'
        assert chooser.asked[0] in ("closed", "reset") and chooser.asked[1:] == ["status"]
        (plan,) = chooser.plans
        assert plan.attempts == 3 and plan.served_by is not None and plan.served_by.backend == "c" and plan.cancel is None


async def test_retries_bound_what_is_chosen_and_the_last_answer_passes() -> None:
    async with upstream(busy) as b, upstream(echo) as c, running_lane() as lane:
        chooser = Chooser(lane, b.target(), b.target("b2"), c.target("c"), retries=1)
        lane.master.addons.add(chooser)
        head, body = await lane.ask(post(b"{}"))
        assert b" 503 " in head and body == b"busy" and chooser.asked == ["status"]
        nobody = Chooser(lane, b.target())
        lane.master.addons.remove(chooser)
        lane.master.addons.add(nobody)
        head, body = await lane.ask(post(b"{}"))
        assert b" 503 " in head and body == b"busy" and nobody.asked == ["status"]


async def test_a_choice_that_raises_is_nobody() -> None:
    async with upstream(die) as a, running_lane() as lane:
        chooser = Chooser(lane, a.target())
        chooser.more = lambda reason: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        lane.master.addons.add(chooser)
        head, _ = await lane.ask(post(b"{}"))
        assert b" 502 " in head


async def test_a_backend_that_dies_between_head_and_body_is_replaced_unseen() -> None:
    async def only_a_head(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.flush()
        peer.reset()

    async with upstream(only_a_head) as a, upstream(echo) as b, running_lane() as lane:
        lane.master.addons.add(Chooser(lane, a.target(), b.target("b")))
        head, body = await lane.ask(post(b"{}"))
        assert b" 200 " in head and body == b'{"ok":1}'
        assert lane.rec.flow_events() == ["requestheaders", "request", "responseheaders", "response"]


async def test_a_body_of_its_own_for_a_candidate() -> None:
    bodies: list[bytes] = []

    async def noting(peer: Peer) -> None:
        while True:
            bodies.append((await peer.message())[1])
            peer.send(response(b"{}"))

    async with upstream(die) as a, upstream(noting) as b, running_lane() as lane:
        lane.master.addons.add(Chooser(lane, a.target(), b.target("b", body=b'{"model":"other"}')))
        head, _ = await lane.ask(post(b'{"model":"m"}'))
        assert b" 200 " in head and bodies == [b'{"model":"other"}']
        assert lane.rec.flows[-1].request.content == b'{"model":"m"}'


async def test_what_is_not_idempotent_never_goes_over_a_used_connection() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        chooser = Chooser(lane, up.target(), idempotent=False, retries=0)
        lane.master.addons.add(chooser)
        for _ in range(2):
            await lane.ask(post(b"{}"))
        assert up.connections == 2
        chooser.options["idempotent"] = True
        await lane.ask(post(b"{}"))
        assert up.connections == 2


@pytest.mark.parametrize("begun", [False, True])
async def test_a_request_can_be_cancelled_from_outside(begun: bool) -> None:
    event = b"data: x\n\n"

    async def slow(peer: Peer) -> None:
        await peer.message()
        if begun:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            peer.send(b"%x\r\n%b\r\n" % (len(event), event))
        await peer.rest()

    async with upstream(slow) as up, running_lane(Streamer()) as lane:
        chooser = Chooser(lane, up.target())
        lane.master.addons.add(chooser)
        client = await lane.connect()
        client.send(post(b"{}"))
        if begun:
            await client.until(event)
        await until(lambda: up.connections and chooser.plans and chooser.plans[0].cancel and chooser.plans[0].sent_at)
        cancel = chooser.plans[0].cancel
        assert cancel is not None
        cancel(Cancelled("stop it"))
        if begun:
            assert b"stop it" in await client.rest()
        else:
            head, body = await client.message()
            assert b" 503 " in head and b"stop it" in body
        assert chooser.plans[0].cancel is None
