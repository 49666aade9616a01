"""Which backend gets a request: one pure function a policy. Nothing but the arguments decides (p2c: and the given random).

A policy picks one of `members`, which is never empty and keeps its order while nothing about the backends changes. `turn` counts
the choices made among them; `key` stands for what the request begins with (`affinity.prefix_key`), None where nothing is known.
It runs for every request: no allocation, one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from random import Random
from typing import Protocol

_MASK = (1 << 64) - 1
_MIX = 0xD6E8FEB86659FD93  # odd, its bits well spread (rrmxmx, Pelle Evensen)


class Member(Protocol):
    """A backend as a policy sees it: how many requests it serves for us right now, and 64 bits that stand for its name."""

    in_flight: int
    seed: int


class Policy(Protocol):
    """Picks one of `members`."""

    def __call__[M: Member](self, members: Sequence[M], turn: int, key: int | None) -> M: ...


def seed_of(name: str) -> int:
    """64 bits for a backend's name, the same in every process."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


def least_connections[M: Member](members: Sequence[M], turn: int, key: int | None) -> M:
    """Fewest requests in flight; ties rotate with `turn`, so that idle backends share the work."""
    n = len(members)
    at = turn % n
    best = members[at]
    fewest = best.in_flight
    for _ in range(n - 1):
        if not fewest:
            break
        at += 1
        member = members[at if at < n else at - n]
        if member.in_flight < fewest:
            best, fewest = member, member.in_flight
    return best


def round_robin[M: Member](members: Sequence[M], turn: int, key: int | None) -> M:
    """Each in turn, whatever its load."""
    return members[turn % len(members)]


def power_of_two(random: Random) -> Policy:
    """Two at random, of these the one with fewer requests in flight: many gateways do not all rush to the same idle backend."""
    draw = random.random

    def p2c[M: Member](members: Sequence[M], turn: int, key: int | None) -> M:
        n = len(members)
        first = int(draw() * n)
        second = int(draw() * (n - 1))
        a, b = members[first], members[second + (second >= first) if n > 1 else 0]
        return a if a.in_flight <= b.in_flight else b

    return p2c


def rank(member: Member, key: int) -> int:
    """How much a key belongs to a member: the highest rank wins (rendezvous hashing). When a backend comes or goes, only the
    keys that it wins move."""
    x = ((key ^ member.seed) * _MIX) & _MASK
    return ((x ^ (x >> 32)) * _MIX) & _MASK


def sticky[M: Member](members: Sequence[M], turn: int, key: int | None) -> M:
    """The one a key belongs to, whatever its load."""
    if key is None:
        return least_connections(members, turn, key)
    best = members[0]
    highest = -1
    for member in members:
        x = ((key ^ member.seed) * _MIX) & _MASK  # `rank`, without the call
        x = ((x ^ (x >> 32)) * _MIX) & _MASK
        if x > highest:
            best, highest = member, x
    return best


def bound(total: int, n: int) -> int:
    """How many requests one of `n` backends may have in flight when all have `total`: 1.25 times the mean, rounded up."""
    return (5 * total + 4 * n - 1) // (4 * n)


def prefix_hash[M: Member](members: Sequence[M], turn: int, key: int | None) -> M:
    """The one the request's beginning belongs to, so that its prefix cache is warm; but nobody gets more than 1.25 times the
    mean (consistent hashing with bounded loads): then it is the next in the key's own order."""
    if key is None:
        return least_connections(members, turn, key)
    total = 1
    for member in members:
        total += member.in_flight
    n = len(members)
    limit = (5 * total + 4 * n - 1) // (4 * n)  # `bound`, without the call
    best = members[0]
    highest = -1
    for member in members:
        if member.in_flight < limit:
            x = ((key ^ member.seed) * _MIX) & _MASK
            x = ((x ^ (x >> 32)) * _MIX) & _MASK
            if x > highest:
                best, highest = member, x
    return best


#: name in the configuration -> a policy of that kind
POLICIES: dict[str, Callable[[], Policy]] = {
    "least_connections": lambda: least_connections,
    "round_robin": lambda: round_robin,
    "p2c": lambda: power_of_two(Random()),
    "prefix_hash": lambda: prefix_hash,
}
