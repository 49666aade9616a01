"""Waiting for conditions, never for times."""

from __future__ import annotations

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
