"""A consistent copy of the database while it is being written: one file, without a write-ahead log, that opens anywhere."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from llmtap_launcher.store.database import StoreError, connect_ro

_PAGES = -1  # in one step: it then shows one moment, and a busy writer cannot make it start over


def backup(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Copies the database at `source` to `target`; returns its size in bytes. The writer goes on meanwhile.

    The copy appears under its name only when it is whole and checked. Raises StoreError when the source cannot be read or the
    target exists, OSError and sqlite3.Error when the copy cannot be written.
    """
    if target.exists():
        raise StoreError(f"{target}: exists already; give another name")
    if not target.parent.is_dir():
        raise StoreError(f"{target.parent}: no such folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(connect_ro(source)) as live, closing(sqlite3.connect(temporary, isolation_level=None)) as copy:
            live.backup(
                copy, pages=_PAGES, progress=None if progress is None else lambda _, left, all_: progress(all_ - left, all_)
            )
            # a copy in WAL mode could not be opened in a folder that cannot be written
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()
            (state,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise StoreError(f"{source}: the database is damaged ({state}): make it again with llmtap ingest --rebuild")
        fd = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, target)
    except BaseException:
        for suffix in ("", "-journal", "-wal", "-shm"):
            with suppress(OSError):
                Path(f"{temporary}{suffix}").unlink(missing_ok=True)
        raise
    return target.stat().st_size
