"""Something only the writer may do, done for a command: here if no writer is at work, else by the one that is."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

from llmtap.core.errors import LlmtapError
from llmtap_launcher.store.follow import explain
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.requests import Requests
from llmtap_launcher.store.writer import Writer

_POLL_S, _PATIENCE_S = 0.1, 3600.0


def run(
    directory: Path,
    database: Path,
    what: str,
    question: Mapping[str, Any],
    here: Callable[[Writer], dict[str, Any]],
    patience_s: float = _PATIENCE_S,
) -> dict[str, Any]:
    """The answer to `what` (one of those `Writer` serves). `here`: the same with a writer of our own. Raises LlmtapError."""
    requests, name = Requests(directory), f"{what}-{os.getpid()}"
    end = time.monotonic() + patience_s
    pause = Event()
    with WriterLock(directory) as lock:
        asked = False
        while time.monotonic() < end:
            if lock.acquire():
                if asked and not requests.withdraw(name) and (answer := requests.answer(name)) is not None:
                    return answer
                with closing(Writer(directory, database)) as writer:
                    try:
                        return here(writer)
                    except (sqlite3.Error, OSError) as error:
                        raise LlmtapError(explain(error, writer)) from error
            if not asked:
                requests.ask(name, what, question)
                asked = True
            if (answer := requests.answer(name)) is not None:
                return answer
            pause.wait(_POLL_S)
        requests.withdraw(name)
    raise LlmtapError(f"the writer (process {lock.holder()}) does not answer; see llmtap status")
