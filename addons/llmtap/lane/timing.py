"""Deadlines of one exchange with one timer: nothing is set or cancelled for a chunk that arrives in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

Limit = Literal["connect", "first_byte", "idle", "total"]


class Watch:
    """Calls `expired(limit)` when the current phase took too long or the whole did. Write `touched` to show progress.

    Times of `ticked_from_s` and longer have no timer: they end when the owner, who looks at its exchanges now and then, calls
    `tick`. Nearly every request is over long before, and a timer made and cancelled for each would be for nothing.
    """

    __slots__ = ("_ends", "_expired", "_handle", "_limit", "_loop", "_seconds", "_ticked_from", "touched")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        total_s: float,
        expired: Callable[[Limit], None],
        ticked_from_s: float = float("inf"),
    ) -> None:
        self._loop = loop
        self._expired = expired
        self._ticked_from = ticked_from_s
        self.touched = loop.time()
        self._ends = self.touched + total_s if total_s > 0 else float("inf")
        self._limit: Limit = "total"
        self._seconds = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def phase(self, limit: Limit, seconds: float) -> None:
        """From now on `seconds` without progress expire `limit`; 0 means no limit but the total one."""
        self.touched = now = self._loop.time()
        self._limit = limit
        self._seconds = seconds
        due = self._due()
        if self._handle is not None and self._handle.when() > due:
            self._handle.cancel()
            self._handle = None
        if self._handle is None and due - now < self._ticked_from:
            self._handle = self._loop.call_at(due, self._look)

    def tick(self, now: float) -> None:
        """A look at the times that have no timer."""
        if self._handle is None and now >= self._due():
            self._end()

    def _due(self) -> float:
        return min(self._ends, self.touched + self._seconds) if self._seconds > 0 else self._ends

    def _look(self) -> None:
        self._handle = None
        left = self._due() - self._loop.time()
        if left <= 0:
            self._end()
        elif left < self._ticked_from:
            self._handle = self._loop.call_at(self._due(), self._look)

    def _end(self) -> None:
        """A time is up: it is told once."""
        if self._due() == self._ends:
            self._ends = float("inf")
            self._limit = "total"
        self._seconds = 0.0
        self._expired(self._limit)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
