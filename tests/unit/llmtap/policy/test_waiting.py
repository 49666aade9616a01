"""Who is next: lines by model, priorities, room found in any way, and nobody twice or never."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.errors import ApiError, NoHealthyBackend, TooMany
from llmtap.policy.backends import Backend, Backends, Way
from llmtap.policy.waiting import Waiter, Waiting


class Hall:
    """Two backends with room for one request each, both taken."""

    def __init__(self, most: int = 100) -> None:
        a = Backend("a", "h", 1, models=("m", "x"), state="up", max_concurrency=1)
        b = Backend("b", "h", 2, models=("m", "y"), state="up", max_concurrency=1)
        self.backends = Backends([a, b])
        self.waiting = Waiting(self.backends, most)
        for backend in self.backends:
            self.backends.take(backend)
        self.said: list[tuple[str, str]] = []

    def come(self, name: str, model: str = "m", **more: Any) -> Waiter:
        def granted(backend: Backend, way: Way) -> None:
            self.said.append((name, backend.name))

        def refused(error: ApiError) -> None:
            self.said.append((name, error.code))

        waiter = Waiter("any", model, granted, refused, **more)
        self.waiting.join(waiter)
        return waiter

    def free(self, name: str) -> None:
        self.backends.release(self.backends[name])


def test_first_come_first_served_and_the_place_counts_at_once() -> None:
    hall = Hall()
    hall.come("first")
    hall.come("second")
    hall.free("b")
    assert hall.said == [("first", "b")] and hall.backends["b"].in_flight == 1 and len(hall.waiting) == 1
    hall.free("a")
    assert hall.said == [("first", "b"), ("second", "a")] and len(hall.waiting) == 0
    assert hall.backends.shared.freed == [], "nobody waits: nothing is done at a release"


def test_a_full_backend_does_not_hold_up_the_others_requests() -> None:
    hall = Hall()
    hall.come("for a", "x")
    hall.come("for b", "y")
    hall.free("b")
    assert hall.said == [("for b", "b")]
    hall.free("a")
    assert hall.said[1:] == [("for a", "a")]


def test_higher_priority_goes_first_across_models() -> None:
    hall = Hall()
    hall.come("low")
    hall.come("high", priority=5)
    hall.come("highest", "x", priority=9)
    for _ in range(3):
        hall.free("a")
    assert [name for name, _ in hall.said] == ["highest", "high", "low"]


def test_who_leaves_is_passed_over() -> None:
    hall = Hall()
    left = hall.come("left")
    hall.come("stays")
    hall.waiting.leave(left)
    hall.waiting.leave(left)
    assert len(hall.waiting) == 1
    hall.free("a")
    assert hall.said == [("stays", "a")]
    hall.waiting.leave(left)
    assert len(hall.waiting) == 0


def test_a_full_hall() -> None:
    hall = Hall(most=1)
    hall.come("one")
    with pytest.raises(TooMany) as caught:
        hall.come("two")
    assert caught.value.code == "queue_full" and caught.value.retry_after_s
    with pytest.raises(TooMany):
        Hall(most=0).come("any")


def test_when_nobody_can_serve_a_model_any_more_its_line_is_told() -> None:
    hall = Hall()
    hall.come("x1", "x")
    hall.come("x2", "x")
    hall.come("y", "y")
    hall.backends.set_state("a", "down", "", 0.0)
    assert hall.said == [("x1", NoHealthyBackend.default_code), ("x2", NoHealthyBackend.default_code)]
    assert len(hall.waiting) == 1


def test_room_comes_in_many_ways() -> None:
    for make_room in (
        lambda h: h.backends.add(Backend("c", "h", 3, models=("m",), state="up")),
        lambda h: h.backends.set_models("c2", (), ("m",)),
        lambda h: h.backends.set_state("c3", "up", "", 0.0),
        lambda h: h.backends.drain("c4", on=False),
    ):
        hall = Hall()
        hall.backends.add(Backend("c2", "h", 4, models=("z",), state="up"))
        hall.backends.add(Backend("c3", "h", 5, models=("m",), state="down"))
        hall.backends.add(Backend("c4", "h", 6, models=("m",), state="up", draining=True))
        hall.come("waiter")
        assert hall.said == []
        make_room(hall)
        assert [name for name, _ in hall.said] == ["waiter"]


def test_waiting_for_one_that_is_being_started() -> None:
    hall = Hall()
    hall.backends.add(Backend("c", "h", 3, models=("z",), state="stopped", starts_within_s=60.0))
    hall.come("waiter", "z")
    hall.free("a")
    assert hall.said == []
    hall.backends.set_state("c", "up", "", 0.0)
    assert hall.said == [("waiter", "c")]


def test_the_limit_over_all_frees_any_line() -> None:
    hall = Hall()
    hall.backends.max_concurrency = 2
    hall.backends["a"].max_concurrency = hall.backends["b"].max_concurrency = 9
    hall.come("for a", "x")
    hall.free("b")
    assert hall.said == [("for a", "a")]


def test_a_grant_that_ends_at_once_makes_room_for_the_next() -> None:
    hall = Hall()

    def granted(backend: Backend, way: Way) -> None:
        hall.said.append(("short", backend.name))
        hall.backends.release(backend)

    for _ in range(3000):  # a recursion would not come so far
        hall.waiting._most = 5000
        hall.waiting.join(Waiter("any", "m", granted, lambda error: None))
    hall.free("a")
    assert len(hall.said) == 3000 and len(hall.waiting) == 0


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_everybody_is_told_exactly_once_and_nobody_waits_beside_a_free_place(seed: int, steps: int) -> None:
    random = Random(seed)
    hall = Hall()
    waiters: dict[str, Waiter] = {}
    left: set[str] = set()
    for step in range(steps):
        match random.randrange(4):
            case 0 | 1:
                model = random.choice("mxy")
                free = hall.backends.pick(hall.backends.ways("any", model)[0])
                if free is not None:  # as a request does before it waits
                    hall.backends.take(free)
                else:
                    waiters[str(step)] = hall.come(str(step), model, priority=random.randrange(3))
            case 2:
                busy = [b for b in hall.backends if b.in_flight]
                if busy:
                    hall.backends.release(random.choice(busy))
            case _:
                still = [n for n in waiters if n not in dict(hall.said) and n not in left]
                if still:
                    left.add(name := random.choice(still))
                    hall.waiting.leave(waiters[name])
        told = [name for name, _ in hall.said]
        assert len(told) == len(set(told)) and not set(told) & left
        assert len(hall.waiting) == len(waiters) - len(told) - len(left)
        assert all(b.in_flight <= 1 for b in hall.backends)
        for model in {waiters[n].model for n in waiters if n not in told and n not in left}:
            assert hall.backends.pick(hall.backends.ways("any", model)[0]) is None


def test_two_configurations_share_the_places_of_their_backends() -> None:
    """A request that began under the old one ends: one that waits under the new one goes, and the other way round."""
    old = Hall()
    new = Hall()
    new.backends = Backends(old.backends, before=old.backends)
    new.waiting = Waiting(new.backends, 10)
    new.come("under the new")
    old.come("under the old")
    old.free("a")
    new.free("b")
    assert {name for name, _ in [*new.said, *old.said]} == {"under the new", "under the old"}
    assert {where for _, where in [*new.said, *old.said]} == {"a", "b"}
    assert old.backends.in_flight == new.backends.in_flight == 2
    new.backends.set_state("a", "down", "", 0.0)
    with pytest.raises(NoHealthyBackend):
        old.backends.ways("any", "x")


def test_one_that_waits_says_what_it_needs_when_that_is_stopped_meanwhile() -> None:
    hall = Hall()
    hall.come("for a", "x")
    wanted: list[str] = []
    hall.backends.wanted = lambda backend: wanted.append(backend.name)
    a = hall.backends["a"]
    a.starts_within_s = 9.0
    hall.backends.set_state("a", "stopped", "another one needs the GPU", 0.0)
    assert wanted == ["a"] and hall.said == []
    hall.backends.set_state("a", "up", "", 1.0)
    hall.free("a")
    assert hall.said == [("for a", "a")]
