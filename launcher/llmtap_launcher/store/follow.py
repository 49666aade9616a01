"""The writer as a long-running process: passes while told to, trouble stated and outlived, a last pass at the end."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from llmtap.core.errors import LlmtapError
from llmtap.spool.segment import scan
from llmtap_launcher.store.database import NewerSchema, outdated
from llmtap_launcher.store.status import StatusFile, Trouble
from llmtap_launcher.store.writer import Writer

log = logging.getLogger("llmtap.writer")

POLL_S = 0.05
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_LINGER_S = 1.0


class Stop:
    """Waits for a time or for the end: SIGTERM, SIGINT or, with `parent_fd`, the end of file there (its writer has died)."""

    def __init__(self, parent_fd: int | None = None) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._parent_fd = parent_fd
        self.orphaned = False
        self.asked = False

    def listen(self) -> None:
        """Takes the two signals. Call it in the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def wait(self, seconds: float) -> bool:
        """True once it is time to stop, at the latest after `seconds` (then False)."""
        deadline = time.monotonic() + seconds
        while not (self.asked or self.orphaned):
            watched = [self._read] if self._parent_fd is None else [self._read, self._parent_fd]
            ready, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            if self._read in ready:
                self.asked = True
            elif not os.read(self._parent_fd or 0, 65536):
                self.orphaned = True
        return True

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(self._write, b"x")


def explain(error: Exception, writer: Writer) -> str:
    """One line for a person: what is wrong and what mends it."""
    if isinstance(error, sqlite3.Error):
        mend = {
            "disk_full": "free some disk space",
            "locked": "another program holds a lock on it",
            "corrupt": "move it away and a new one is begun, or make it again: llmtap ingest --rebuild",
            "read_only": "make it and its folder writable for this user",
        }.get(trouble_of(error))
        return f"{writer.database}: {error}: {mend + '; ' if mend else ''}captures wait in the spool"
    if isinstance(error, OSError):
        return f"{error.filename or writer.spool}: {error.strerror or error}"
    if isinstance(error, LlmtapError):
        return str(error)
    return f"unexpected {type(error).__name__} (a defect of llmtap; captures wait in the spool)"


def trouble_of(error: Exception) -> Trouble:
    """What kind of trouble an error is."""
    text = str(error)
    if isinstance(error, sqlite3.Error):
        kinds: tuple[tuple[Trouble, tuple[str, ...]], ...] = (
            ("disk_full", ("full",)),
            ("locked", ("locked",)),
            ("corrupt", ("malformed", "not a database", "corrupt")),
            ("read_only", ("readonly", "unable to open")),
            ("unreadable", ("disk I/O error",)),
        )
        return next((kind for kind, words in kinds if any(word in text for word in words)), "other")
    if isinstance(error, OSError):
        full, refused = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EROFS, errno.EACCES, errno.EPERM)
        return "disk_full" if error.errno in full else "read_only" if error.errno in refused else "unreadable"
    return "newer_schema" if isinstance(error, NewerSchema) else "other"


def follow(writer: Writer, stop: Stop, file: StatusFile, *, pause: Callable[[float], object] | None = None) -> bool:
    """Passes until `stop`, then a last one. Returns whether that last one worked.

    Trouble (disk full, database locked, corrupted or newer, spool unreadable) is logged once, stands in the status file, and is
    tried again with growing pauses.
    """
    status, failures, told, last_good = writer.status, 0, None, time.time()
    writer.on_commit = lambda: file.write(status)
    if outdated(writer.database):  # it takes its time, and nobody need wait for it
        log.info("%s: of an earlier version, is brought up to date", writer.database)
        file.write(status, now=True)
    while True:
        stopping = stop.asked or stop.orphaned
        try:
            writer.run_pass()
            if not stopping:
                writer.maintain()
        except Exception as error:
            failures += 1
            status.state, status.error, status.trouble = "error", explain(error, writer), trouble_of(error)
            status.lag_s = round(time.time() - last_good, 3)
            if status.error != told:
                expected = isinstance(error, (sqlite3.Error, OSError, LlmtapError))
                log.error("%s", status.error, exc_info=None if expected else error)
                told = status.error
        else:
            if told is not None:
                log.info("working again")
            failures, told, last_good = 0, None, time.time()
            status.state, status.error, status.trouble = "running", None, None
        file.write(status, now=stopping)
        if stopping:
            break
        stop.wait(POLL_S if not failures else min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures, 10)))
    if stop.orphaned and not failures:
        _linger(writer, pause or threading.Event().wait)
    if not failures:
        status.state = "stopped"
    file.write(status, now=True)
    return not failures


def _linger(writer: Writer, pause: Callable[[float], object]) -> None:
    """A killed parent's files are unlocked a moment after its end of file: then they are final, and what was open is lost."""
    deadline = time.monotonic() + _LINGER_S
    while scan(writer.spool) and time.monotonic() < deadline:
        pause(POLL_S)
        try:
            writer.run_pass()
        except Exception as error:
            log.error("%s", explain(error, writer))
            return
