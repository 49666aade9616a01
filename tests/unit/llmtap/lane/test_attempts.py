"""Corners of the way to a backend; retries, timeouts and stale connections are in tests/integration/test_lane_faults.py."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mitmproxy.test import tflow

from llmtap.core.plan import Plan, Target
from llmtap.lane.attempts import Attempts, default_plan
from llmtap.lane.inbound import Inbound
from llmtap.lane.upstream import Failure
from support.lane import echo, post, running_lane, upstream


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
