"""Balancing policies: pure choices."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llmtap.policy.balancing import POLICIES, Load, least_connections, round_robin

loads = st.lists(st.integers(0, 50), min_size=1, max_size=8).map(lambda ns: [Load(f"b{i}", n) for i, n in enumerate(ns)])


@given(loads, st.integers(0, 1000))
def test_every_policy_orders_all_backends_once(given_loads: list[Load], turn: int) -> None:
    for policy in POLICIES.values():
        assert sorted(policy(given_loads, turn)) == sorted(load.name for load in given_loads)


@given(loads, st.integers(0, 1000))
def test_least_connections_takes_the_idlest(given_loads: list[Load], turn: int) -> None:
    first = least_connections(given_loads, turn)[0]
    by_name = {load.name: load.in_flight for load in given_loads}
    assert by_name[first] == min(by_name.values())


def test_ties_rotate() -> None:
    idle = [Load("a", 0), Load("b", 0), Load("c", 0)]
    assert Counter(least_connections(idle, turn)[0] for turn in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_round_robin_ignores_load() -> None:
    busy = [Load("a", 9), Load("b", 0)]
    assert [round_robin(busy, turn)[0] for turn in range(4)] == ["a", "b", "a", "b"]


def test_uneven_requests_spread_within_ten_percent() -> None:
    """10,000 requests of uneven length, least connections: the time-weighted load is even."""
    in_flight = {"a": 0, "b": 0, "c": 0}
    served: Counter[str] = Counter()
    ending: dict[int, list[str]] = {}
    for tick in range(10_000):
        for name in ending.pop(tick, []):
            in_flight[name] -= 1
        chosen = least_connections([Load(n, c) for n, c in in_flight.items()], tick)[0]
        in_flight[chosen] += 1
        length = 1 + (tick * 7919) % 97
        served[chosen] += length
        ending.setdefault(tick + length, []).append(chosen)
    mean = sum(served.values()) / 3
    assert all(abs(n - mean) < 0.1 * mean for n in served.values())
