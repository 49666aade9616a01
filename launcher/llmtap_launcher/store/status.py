"""`<dir>/writer.json`: how the writer is doing, for `llmtap status` and the metrics. Replaced atomically, never half written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import orjson

State = Literal["running", "error", "stopped"]
#: what an error is, for programs: `error` says it to people
Trouble = Literal["disk_full", "read_only", "locked", "corrupt", "newer_schema", "unreadable", "other"]
FILENAME = "writer.json"

_EVERY_S = 0.5
_HEARTBEAT_S = 5.0


@dataclass(slots=True)
class WriterStatus:
    """What the file says. Counts are since the writer's start.

    `at`: seconds since the epoch, at least every 5 s while it runs. `lag_s`: age of the oldest record read and not yet
    committed, 0 when all is in. `bad`: lines that are in `quarantine.jsonl` and not in the database. `dropped`: what the
    gateway had to leave out, by reason, as far as it said so. `trouble`: the kind of an `error`. `pruned`: exchanges that went.
    """

    pid: int = 0
    at: float = 0.0
    state: State = "running"
    error: str | None = None
    trouble: Trouble | None = None
    lag_s: float = 0.0
    ingested_records: int = 0
    bad: int = 0
    lost: int = 0
    dropped: int = 0
    spool_bytes: int = 0
    db_bytes: int = 0
    pruned: int = 0


class StatusFile:
    """Writes the status at most every 500 ms, and only when something changed (or the heartbeat is due)."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = directory / FILENAME
        self._clock = clock
        self._written: WriterStatus | None = None

    def write(self, status: WriterStatus, *, now: bool = False) -> None:
        """`now`: whatever the interval says. A folder that cannot be written is no reason to stop: nothing is raised."""
        at = self._clock()
        status.pid, status.at = os.getpid(), at
        if self._written is not None and not now:
            age = at - self._written.at
            same = asdict(self._written) | {"at": at} == asdict(status)
            if 0 <= age < _EVERY_S or (same and 0 <= age < _HEARTBEAT_S):
                return
        temporary = self.path.with_suffix(".json.tmp")
        with suppress(OSError):
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(orjson.dumps(status) + b"\n")
            temporary.replace(self.path)
        self._written = WriterStatus(**asdict(status))


def read_status(directory: Path) -> WriterStatus | None:
    """What the writer of a capture folder last said; None when it never said anything readable."""
    try:
        found = orjson.loads((directory / FILENAME).read_bytes())
        known = {name: found[name] for name in WriterStatus.__slots__ if name in found}
    except (OSError, ValueError, TypeError):
        return None
    return WriterStatus(**known)
