"""Waiting for conditions, never for times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from threading import Event


def eventually[T](condition: Callable[[], T | None], message: str, timeout_s: float = 20.0, every_s: float = 0.02) -> T:
    """The first truthy value `condition` gives; AssertionError with `message` when there is none within `timeout_s`."""
    pause = Event()
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(message)
        pause.wait(every_s)


async def eventually_async(condition: Callable[[], object], message: str, timeout_s: float = 20.0, every_s: float = 0.02) -> None:
    """The same within an event loop, which goes on meanwhile."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(message)
        await asyncio.sleep(every_s)
