"""Which backend gets a request: one pure function a policy. The caller passes what it knows, in a fixed order.

A choice is an order to try, best first: the first entry gets the request, the others are the fallbacks of a retry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """A backend as a policy sees it: its name and how many requests it is serving for us right now."""

    name: str
    in_flight: int


def least_connections(loads: Sequence[Load], turn: int) -> list[str]:
    """Fewest requests in flight first; ties rotate with `turn`, so that idle backends share the work."""
    n = len(loads)
    order = sorted(range(n), key=lambda i: (loads[i].in_flight, (i - turn) % n))
    return [loads[i].name for i in order]


def round_robin(loads: Sequence[Load], turn: int) -> list[str]:
    """Each in turn, whatever its load."""
    n = len(loads)
    return [loads[(turn + i) % n].name for i in range(n)]


Policy = Callable[[Sequence[Load], int], list[str]]
POLICIES: dict[str, Policy] = {"least_connections": least_connections, "round_robin": round_robin}
