import asyncio
import socket
from typing import Any

import pytest

from llmtap.lane.resolve import Resolver


class Names:
    """Stands in for the event loop: its clock and its look-ups."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, int]] = []

    def time(self) -> float:
        return self.now

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append((host, port))
        if host == "nowhere":
            raise socket.gaierror("unknown")
        return [(socket.AF_INET6, 1, 6, "", ("::1", port, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]


def make() -> tuple[Names, Resolver]:
    names = Names()
    return names, Resolver(names, 30.0)  # type: ignore[arg-type]


async def test_literal_addresses_are_not_looked_up() -> None:
    names, resolver = make()
    assert await resolver.addresses("127.0.0.1", 80) == [(socket.AF_INET, ("127.0.0.1", 80))]
    assert await resolver.addresses("::1", 80) == [(socket.AF_INET6, ("::1", 80, 0, 0))]
    assert names.asked == []


async def test_answers_are_kept_for_their_time_and_no_longer() -> None:
    names, resolver = make()
    first = await resolver.addresses("host", 80)
    assert [family for family, _ in first] == [socket.AF_INET6, socket.AF_INET]
    names.now = 29.0
    assert await resolver.addresses("host", 80) == first
    assert len(names.asked) == 1
    await resolver.addresses("host", 81)
    names.now = 30.5
    await resolver.addresses("host", 80)
    assert len(names.asked) == 3


async def test_an_answer_that_did_not_serve_is_forgotten() -> None:
    names, resolver = make()
    await resolver.addresses("host", 80)
    resolver.forget("host", 80)
    resolver.forget("other", 80)
    await resolver.addresses("host", 80)
    assert len(names.asked) == 2


async def test_failures_are_not_kept() -> None:
    names, resolver = make()
    for _ in range(2):
        with pytest.raises(OSError):
            await resolver.addresses("nowhere", 80)
    assert len(names.asked) == 2


async def test_the_real_thing_knows_localhost() -> None:
    found = await Resolver(asyncio.get_running_loop(), 1.0).addresses("localhost", 80)
    assert (socket.AF_INET, ("127.0.0.1", 80)) in found
