"""The configuration file, looked at once a second: a key that is taken out of it stops working without a restart."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

EVERY_S = 1.0
log = logging.getLogger("llmtap")


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None while it is away."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


async def watch(path: Path, changed: Callable[[], None], every_s: float = EVERY_S) -> None:
    """Call `changed` after every change of the file, until cancelled. A file that is away for a moment has not changed.

    What `changed` raises is logged: the next change is looked at all the same.
    """
    known = stamp(path)
    while True:
        await asyncio.sleep(every_s)
        now = stamp(path)
        if now is not None and now != known:
            known = now
            try:
                changed()
            except Exception:
                log.exception("llmtap: the changed configuration could not be taken over")
