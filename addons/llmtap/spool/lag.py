"""How far the database is behind the capture log, as the gateway can see it: from the writer's status file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import orjson

#: written by `llmtap ingest --follow` beside the spool, at least every 5 s
STATUS_FILE = "writer.json"
_SILENT_S = 15.0


def writer_lag_s(directory: Path, clock: Callable[[], float] = time.time) -> float | None:
    """Age in seconds of the oldest record that is not yet in the database; None when no writer ever told.

    A writer that has been silent for 15 s is taken to be dead: then everything since its last word is missing.
    """
    try:
        status = orjson.loads((directory / STATUS_FILE).read_bytes())
        at, lag = float(status["at"]), float(status["lag_s"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    silent = clock() - at
    return max(0.0, lag) if silent < _SILENT_S else max(0.0, lag) + silent
