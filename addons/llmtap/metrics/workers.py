"""Metrics of several gateway processes that share a port: whichever of them is asked answers for all.

Each process writes its numbers twice a second to a file of its own in a folder they share, and holds a lock while it
lives. An answer is the sum of the files, its own included, so it never tells a number that is not on the disk: a process
that is killed takes at most half a second of counts with it that nobody was told of, and no counter ever goes down. Gauges
count for processes that live. The files of processes that ended are folded into one, so restarts leave no trail.

The folder belongs to one run of the launcher: it makes a new one, so a restart of everything begins at zero, as
Prometheus expects of a restart.

    <folder>/<process>.json   its numbers, and what else it tells of itself; replaced atomically
    <folder>/<process>.lock   locked (flock) while it lives
    <folder>/ended.json       the sum of those that ended, and their names
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmtap.core import locks
from llmtap.metrics.families import Families

INTERVAL_S = 0.5
_ENDED = "ended.json"
_NAMES = 1000  # of the processes that ended last; a reader needs those folded while it reads
#: what reading a file that was torn, or is none of ours, may raise
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


class Share(Collector):
    """One process's part. As a collector it tells the numbers of all processes of the folder.

    `name` must differ between the processes of a folder and between restarts. Raises OSError when the folder cannot be used.
    """

    def __init__(self, families: Families, folder: Path, name: str) -> None:
        #: what this process tells of itself besides, as plain data; asked on the event loop
        self.facts: Callable[[], dict[str, Any]] = dict
        self._families = families
        self._folder = folder
        self._name = name
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._task: asyncio.Task[None] | None = None
        with contextlib.suppress(OSError):  # a full disk, as below
            self._write(self._dump())

    # ---- life

    def start(self) -> None:
        """Write from now on. Call on the running loop."""
        self._task = asyncio.create_task(self._forever(), name="llmtap shared metrics")

    def stop(self) -> None:
        """Write what is left, and end. What was counted stays in the sum."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                self._write(self._dump())
            os.close(self._lock)
            self._lock = -1

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            data = self._dump()
            # a full disk costs these numbers their freshness, nothing else
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._write, data)

    def _dump(self) -> bytes:
        return orjson.dumps({"families": self._families.dump(), "facts": self.facts()}, option=orjson.OPT_NON_STR_KEYS)

    def _write(self, data: bytes) -> None:
        _replace(self._folder / f"{self._name}.json", data)

    # ---- all of them

    def describe(self) -> list[Metric]:
        """Names are checked with this process's own families."""
        return list(self._families.describe())

    def collect(self) -> Iterator[Metric]:
        """The sums of now. A file that cannot be read is left out until it can."""
        return self.total().collect()

    def total(self) -> Families:
        """The numbers of all processes, those that ended included."""
        with contextlib.suppress(OSError):
            self._fold()
        found = {path: _read(path) for path in sorted(self._folder.glob("*.json")) if path.name != _ENDED}
        # read last: what another process folds meanwhile is in both then, and named in it
        ended = _read(self._folder / _ENDED)
        names = frozenset(ended["names"]) if ended is not None else frozenset()
        sum_of = Families()
        sum_of.absorb(self._families.dump_shells())
        if ended is not None:
            sum_of.absorb(ended["families"], alive=False)
        for path, data in found.items():
            if data is not None and path.stem not in names:
                alive = path.stem == self._name or locks.held(path.with_suffix(".lock"))
                sum_of.absorb(data["families"], alive=alive)
        return sum_of

    def others(self) -> list[dict[str, Any]]:
        """The facts of the other processes that live, as far as they have told any yet."""
        paths = [path for path in sorted(self._folder.glob("*.json")) if path.name != _ENDED and path.stem != self._name]
        found = [_read(path) for path in paths if locks.held(path.with_suffix(".lock"))]
        return [one["facts"] for one in found if one is not None and one.get("facts")]

    def _fold(self) -> None:
        """Put the files of processes that ended into one. One process at a time does it; the others need not wait."""
        gone = [p for p in self._folder.glob("*.json") if p.name != _ENDED and p.stem != self._name]
        gone = [p for p in gone if not locks.held(p.with_suffix(".lock"))]
        if not gone:
            return
        guard = os.open(self._folder / "fold.guard", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ended = _read(self._folder / _ENDED) or {"names": [], "families": []}
            names, sum_of = list(ended["names"]), Families()
            sum_of.absorb(ended["families"], alive=False)
            folded = []
            for path in gone:
                found = _read(path) if path.exists() else None
                if found is None:
                    continue
                if path.stem not in names:
                    sum_of.absorb(found["families"], alive=False)
                    names.append(path.stem)
                folded.append(path)
            if folded:
                # the names are in the file before the others go: whoever is killed here has nothing counted twice
                data = {"names": names[-_NAMES:], "families": sum_of.dump()}
                _replace(self._folder / _ENDED, orjson.dumps(data))
                for path in folded:
                    path.unlink(missing_ok=True)
                    path.with_suffix(".lock").unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(guard)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads(path.read_bytes())
        Families().absorb(found["families"])
    except _UNREADABLE:
        return None
    return dict(found)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
    temporary.replace(path)
