"""How far the database is behind the capture log, as the gateway can see it: from the writer's status file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

#: written by `llmtap ingest --follow` beside the spool, at least every 5 s
STATUS_FILE = "writer.json"
_SILENT_S = 15.0
#: what can be wrong with a writer (`trouble` in its status file); "silent": it said nothing for 15 s, so it is taken to be dead
TROUBLES = ("disk_full", "read_only", "locked", "corrupt", "newer_schema", "unreadable", "other", "silent")


def writer_lag_s(directory: Path, clock: Callable[[], float] = time.time) -> float | None:
    """Age in seconds of the oldest record that is not yet in the database; None when no writer ever told.

    A writer that has been silent for 15 s is taken to be dead: then everything since its last word is missing.
    """
    said = _said(directory, clock)
    if said is None:
        return None
    lag, silent, _ = said
    return max(0.0, lag) if silent < _SILENT_S else max(0.0, lag) + silent


def writer_troubles(directory: Path, clock: Callable[[], float] = time.time) -> dict[str, bool]:
    """Which of TROUBLES the writer has; nothing at all when no writer ever told. One that ended in order is not silent."""
    said = _said(directory, clock)
    if said is None:
        return {}
    _, silent, status = said
    has = status.get("trouble") if status.get("state") == "error" else None
    if silent >= _SILENT_S and status.get("state") != "stopped":
        has = "silent"
    elif has is not None and has not in TROUBLES:
        has = "other"
    return {trouble: trouble == has for trouble in TROUBLES}


def quarantined(directory: Path, clock: Callable[[], float] = time.time) -> int | None:
    """Records that this writer could not store, and put aside; None when no writer ever told."""
    said = _said(directory, clock)
    bad = said[2].get("bad") if said is not None else None
    return bad if isinstance(bad, int) else None


def _said(directory: Path, clock: Callable[[], float]) -> tuple[float, float, dict[str, Any]] | None:
    """Its lag and how long ago it said so (both seconds), and all it said."""
    try:
        status = orjson.loads((directory / STATUS_FILE).read_bytes())
        return float(status["lag_s"]), clock() - float(status["at"]), status
    except (OSError, ValueError, TypeError, KeyError):
        return None
