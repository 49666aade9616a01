"""The requests that wait for a backend: who is next when there is room. No I/O, no clock.

One line a model (and scope), so that a full backend does not hold up the requests of another. Within a line the highest priority
goes first, then who came first; among the lines whose backends have room, the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from llmtap.core.errors import ApiError, TooMany
from llmtap.policy.backends import Backend, Backends, Scope, Way

Line = tuple[Scope, str | None]


@dataclass(slots=True, eq=False)
class Waiter:
    """One request. Exactly one of the two is called, unless it `leave`s first: `granted` with the backend, whose load already
    counts it, and the way it is served; `refused` with the reason."""

    scope: Scope
    model: str | None
    granted: Callable[[Backend, Way], None]
    refused: Callable[[ApiError], None]
    key: int | None = None
    session: int | None = None
    priority: int = 0
    gone: bool = field(default=False, init=False)


class Waiting:
    """The waiting requests, at most `most` at a time."""

    def __init__(self, backends: Backends, most: int) -> None:
        self._backends = backends
        self._most = most
        self._lines: dict[Line, list[tuple[int, int, Waiter]]] = {}
        self._count = 0
        self._came = 0
        self._serving = False

    def __len__(self) -> int:
        return self._count

    def join(self, waiter: Waiter) -> None:
        """Wait from now on. Raises TooMany (`queue_full`)."""
        if self._count >= self._most:
            raise TooMany(f"too many requests are waiting ({self._count}); try again later", code="queue_full")
        self._came += 1
        self._count += 1
        heappush(self._lines.setdefault((waiter.scope, waiter.model), []), (-waiter.priority, self._came, waiter))
        if self._count == 1:
            self._backends.shared.freed.append(self.serve)

    def leave(self, waiter: Waiter) -> None:
        """It waits no longer. May be called at any time, and more than once."""
        if not waiter.gone:
            waiter.gone = True  # its place in the line is found empty later
            self._less()

    def serve(self) -> None:
        """Give out what room there is, and refuse those whom nobody can serve any more."""
        if self._serving:
            return  # a grant that made room again: the loop below sees it
        self._serving = True
        try:
            while self._count and self._serve_one():
                pass
        finally:
            self._serving = False

    def _serve_one(self) -> bool:
        heads: list[tuple[int, int, Line]] = []
        for line, heap in list(self._lines.items()):
            while heap and heap[0][2].gone:
                heappop(heap)
            if not heap:
                del self._lines[line]
            else:
                heads.append((heap[0][0], heap[0][1], line))
        if len(heads) > 1:
            heads.sort(key=lambda head: head[:2])
        for _, _, line in heads:
            heap = self._lines[line]
            waiter = heap[0][2]
            try:
                way = self._backends.ways(*line)[0]
            except ApiError as error:
                del self._lines[line]
                self._refuse(heap, error)
                return True
            backend = self._backends.pick(way, waiter.key, waiter.session)
            if backend is not None:
                heappop(heap)
                waiter.gone = True
                self._less()
                self._backends.take(backend)
                waiter.granted(backend, way)
                return True
            if way.startable and self._backends.wanted is not None:  # it may have run when they came
                self._backends.wanted(way.startable[0])
        return False

    def _refuse(self, heap: list[tuple[int, int, Waiter]], error: ApiError) -> None:
        for _, _, waiter in sorted(heap, key=lambda entry: entry[:2]):
            if not waiter.gone:
                waiter.gone = True
                self._less()
                waiter.refused(error)

    def _less(self) -> None:
        self._count -= 1
        if not self._count:
            self._lines.clear()
            self._backends.shared.freed.remove(self.serve)
