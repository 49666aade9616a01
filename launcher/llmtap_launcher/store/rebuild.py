"""The database made again from the archived spool: after it was corrupted, or lost.

Everything is stored anew into a file of its own; only when that is whole does it take the old one's place, which is kept beside
it. What the archive no longer has is not in it: `missing` tells before. The spool's own files are taken in by the writer as
always.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from zstandard import ZstdError

from llmtap.core.errors import LlmtapError
from llmtap.spool.segment import parse_name
from llmtap_launcher.store.archive import Archive, unpack
from llmtap_launcher.store.database import StoreError, connect_ro
from llmtap_launcher.store.options import Options, Retention
from llmtap_launcher.store.writer import Writer

_SUFFIXES = ("", "-wal", "-shm")


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild came to. `damaged`: archived files that could be read in part only. `old`: where the old database is now."""

    segments: int = 0
    records: int = 0
    bad: int = 0
    damaged: list[str] | None = None
    old: Path | None = None


def missing(directory: Path, database: Path) -> int | None:
    """How many exchanges of the database the archive no longer has; None when the database cannot be read."""
    segments = Archive(directory).segments()
    names = {segment.filename for segment in segments}
    try:
        with closing(connect_ro(database)) as conn:
            boots = {segment.run for segment in segments}
            gone = [
                name
                for (name,) in conn.execute("SELECT name FROM segments WHERE finished_at IS NOT NULL AND records > 0").fetchall()
                if name not in names
            ]
            # of a boot that has lost files some of its exchanges are gone: which ones the rows do not tell
            lost = {segment.run for segment in map(parse_name, gone) if segment is not None}
            (known,) = conn.execute("SELECT count(*) FROM exchanges").fetchone()
            kept = sum(
                conn.execute("SELECT count(*) FROM exchanges WHERE boot = ?", (boot,)).fetchone()[0] for boot in boots - lost
            )
            return int(known - kept) if lost else 0
    except (StoreError, sqlite3.Error):
        return None


def rebuild(directory: Path, database: Path, options: Options, tell: Callable[[str], None] = lambda _: None) -> Rebuilt:
    """Makes the database again. Call it under the writer's lock. Raises LlmtapError when there is nothing to make it of,
    OSError and sqlite3.Error when it cannot be written; then the old database is where it was."""
    segments = Archive(directory).segments()
    if not segments:
        raise LlmtapError(f"{directory / 'archive'}: nothing is archived, so there is nothing to make a database of")
    work = directory / "rebuild"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    fresh = database.with_name(f"{database.name}.rebuild")
    _remove(fresh)
    out = Rebuilt(damaged=[])
    try:
        # nothing is pruned or archived meanwhile, and whose worker lives is not known here
        plain = replace(options, retention=Retention(), archive_days=0)
        with closing(Writer(work, fresh, options=plain, settles=False)) as writer:
            for number, (segment, path) in enumerate(segments.items(), 1):
                try:
                    unpack(path, writer.spool)
                except ZstdError:
                    assert out.damaged is not None
                    out.damaged.append(path.name)
                writer.run_pass()
                tell(f"{number} of {len(segments)}: {segment.filename}")
            out.segments, out.records, out.bad = len(segments), writer.status.ingested_records, writer.status.bad
        _sync(fresh)
        out.old = _set_aside(database)
        os.replace(fresh, database)
        _sync(database.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _remove(fresh)
    return out


def _set_aside(database: Path) -> Path | None:
    """Renames the old database, with its write-ahead log, to a name that is free."""
    if not any(Path(f"{database}{suffix}").exists() for suffix in _SUFFIXES):
        return None
    number = 1
    while (old := database.with_name(f"{database.stem}.old-{number}{database.suffix}")).exists():
        number += 1
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            os.replace(f"{database}{suffix}", f"{old}{suffix}")
    return old


def _remove(path: Path) -> None:
    for suffix in _SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
