"""What gateways are told of a backend."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from llmtap.core.config import Backend
from llmtap_launcher.members import RETRY_S, Member
from llmtap_launcher.process import Process, Spec, State


def member(state: State = State.READY, **more: Any) -> Member:
    backend = Backend.model_validate({"name": "a", "launch": {"model": "org/m", "startup_timeout_s": 100, "ttl_s": 5}})
    process = Process(Spec("a", [sys.executable]))
    process.state = state
    return Member(backend, process, **more)


def shown(m: Member, now: float = 1000.0) -> dict[str, Any]:
    return dict(m.shown(30.0, now))


def test_one_that_runs_is_left_to_the_gateways_own_checks() -> None:
    assert shown(member()) == {"draining": False}
    assert shown(member(draining=True)) == {"draining": True}
    assert shown(member(State.STARTING)) == {"draining": False}
    assert shown(Member(Backend.for_url("http://127.0.0.1:1"))) == {"draining": False}


@pytest.mark.parametrize("state", [State.STOPPED, State.STARTING, State.STOPPING, State.FAILED])
def test_one_that_starts_on_demand_is_waited_for_until_it_runs(state: State) -> None:
    found = shown(member(state, resumes=True))
    assert (found["stopped"], found["starts_within_s"]) == (True, 130.0)
    assert shown(member(resumes=True, held=True))["stopped"]


def test_one_that_was_stopped_by_hand_is_not_waited_for() -> None:
    found = shown(member(State.STOPPED, held=True))
    assert (found["stopped"], found["starts_within_s"], found["reason"]) == (True, None, "stopped by an operator")


def test_after_a_failed_start_the_next_request_has_to_come_later() -> None:
    failed = member(State.FAILED, resumes=True, failed_at=1000.0)
    assert failed.process is not None
    failed.process.error = "a exited with status 1"
    assert shown(failed, 1001.0) == {
        "draining": False,
        "stopped": True,
        "starts_within_s": None,
        "reason": "a exited with status 1",
    }
    assert shown(failed, 1000.0 + RETRY_S)["starts_within_s"] == 130.0


def test_states_and_models() -> None:
    assert member().state == "ready" and member(asleep=True).state == "asleep"
    assert Member(Backend.for_url("http://127.0.0.1:1")).state == "remote"
    assert member().serves("org/m") and not member().serves("m")
    assert member().runs and not member(asleep=True).runs and not member(State.FAILED).runs


def test_one_that_waits_for_the_one_before_it_to_end_is_waited_for() -> None:
    follower = member()
    follower.process = None
    assert (shown(follower)["stopped"], shown(follower)["starts_within_s"]) == (True, 130.0)
