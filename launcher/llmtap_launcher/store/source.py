"""What commands read from: a capture database, or spool files that nobody has stored (then a temporary database is made of them).

Nothing is changed where the files are: no file is deleted, no lock of a writer is needed, and a worker may go on writing to its
file meanwhile.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import batched
from pathlib import Path

from zstandard import ZstdError

from llmtap.core import locks
from llmtap.core.errors import LlmtapError
from llmtap.spool.frame import Bad, unframe
from llmtap.spool.reader import read
from llmtap.spool.segment import Segment, parse_name, scan
from llmtap_launcher.report import size
from llmtap_launcher.store.archive import SUFFIX, unpack
from llmtap_launcher.store.database import StoreError, connect_ro, open_writer, outdated
from llmtap_launcher.store.gpu_hours import settle_hours
from llmtap_launcher.store.ingest import Ingester, Item
from llmtap_launcher.store.ledger import Ledger
from llmtap_launcher.store.options import Options
from llmtap_launcher.store.rows import iso

_MAGIC = b"SQLite format 3\0"
_BATCH = 500


@contextmanager
def open_source(
    path: Path, options: Options | None = None, tell: Callable[[str], None] = lambda _: None
) -> Iterator[sqlite3.Connection]:
    """A read-only connection to what `path` names; closed (and anything temporary removed) at the end of the block.

    `path`: a database; a folder with `capture.db`, or with spool files in it or in its `spool`; a spool file, also an archived
    one (`.jsonl.zst`). `options`: prices for a temporary database. `tell` hears what a person should know. Raises LlmtapError
    for anything else.
    """
    with _database(path, options or Options(), tell) as database, closing(connect_ro(database)) as conn:
        yield conn


@contextmanager
def _database(path: Path, options: Options, tell: Callable[[str], None]) -> Iterator[Path]:
    if path.is_dir():
        database = path / "capture.db"
        if database.exists():
            behind = _waiting(path / "spool", database)
            if behind:
                tell(f"{path / 'spool'}: {size(behind)} are not in {database.name} yet: llmtap ingest --dir {path}")
            path = database
        else:
            files = _segments(path) or _segments(path / "spool") or _segments(path / "archive")
            if not files:
                raise LlmtapError(f"{path}: neither capture.db nor spool files in it: nothing was captured there")
            with _temporary(files, options, tell, path) as made:
                yield made
            return
    if not path.exists():
        raise StoreError(f"{path}: no such database: nothing was captured yet (--db names another)")
    if is_database(path):
        if outdated(path):
            raise StoreError(f"{path}: of an earlier llmtap; its writer brings it up to date: llmtap ingest --dir {path.parent}")
        yield path
    elif _is_spool(path):
        with _temporary({_named(path): path}, options, tell, path) as made:
            yield made
    else:
        raise StoreError(
            f"{path}: neither a capture database nor a spool file (other logs: llmtap import takes them into a database)"
        )


def is_database(path: Path) -> bool:
    """Whether a file is a SQLite database. Raises StoreError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def _is_spool(path: Path) -> bool:
    if path.name.endswith(SUFFIX):
        return True
    with open(path, "rb") as file:
        return not isinstance(unframe(file.readline(256 * 1024 * 1024)), Bad)


def _segments(folder: Path) -> dict[Segment, Path]:
    """The spool files of a folder, packed ones too, in reading order."""
    found = {segment: folder / segment.filename for segment in scan(folder)}
    with suppress(OSError):
        for path in folder.glob(f"*.jsonl{SUFFIX}"):
            segment = parse_name(path.name.removesuffix(SUFFIX))
            if segment is not None:
                found.setdefault(segment, path)
    return dict(sorted(found.items()))


def _named(path: Path) -> Segment:
    return parse_name(path.name.removesuffix(SUFFIX)) or Segment("file", "0", 1)


def _waiting(spool: Path, database: Path) -> int:
    """Bytes of the spool that no writer has taken in; 0 while one is at work."""
    files = scan(spool)
    if not files or locks.held(database.parent / "writer.lock"):
        return 0
    try:
        with closing(connect_ro(database)) as conn:
            done = dict(tuple(row) for row in conn.execute("SELECT name, ingested_to FROM segments"))
    except (StoreError, sqlite3.Error):
        return 0
    return sum(max(0, length - done.get(segment.filename, 0)) for segment, length in files.items())


@contextmanager
def _temporary(files: Mapping[Segment, Path], options: Options, tell: Callable[[str], None], path: Path) -> Iterator[Path]:
    total = sum(file.stat().st_size for file in files.values())
    words = "1 spool file is" if len(files) == 1 else f"{len(files)} spool files are"
    tell(f"{path}: {words} read into a temporary database ({size(total)})")
    try:
        folder = Path(tempfile.mkdtemp(prefix="llmtap-"))
    except OSError as error:
        raise StoreError(f"no temporary folder can be made: {error.strerror}: set TMPDIR") from error
    try:
        yield _built(folder, files, options, tell)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _built(folder: Path, files: Mapping[Segment, Path], options: Options, tell: Callable[[str], None]) -> Path:
    database = folder / "capture.db"
    bad = 0
    try:
        with closing(open_writer(database)) as conn:
            conn.execute("PRAGMA synchronous = OFF")  # it does not outlive this process
            ingester = Ingester(conn, options.rates, options.urls)
            for segment, path in files.items():
                for records in batched(_records(segment, path, folder, tell), _BATCH):
                    items = [record for record in records if record is not None]
                    bad += len(records) - len(items)
                    conn.execute("BEGIN")
                    bad += len(ingester.apply(items).poison)
                    conn.execute("COMMIT")
            now = iso(time.time_ns() // 1000)
            conn.execute("BEGIN")
            Ledger(conn).settle({segment for segment, path in files.items() if locks.held(path)}, now)
            settle_hours(conn, now[:13], 1 << 31)
            conn.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise StoreError(f"{folder}: the temporary database cannot be made: {why}: set TMPDIR to a folder with room") from error
    if bad:
        tell(f"{bad} damaged lines are left out")
    return database


def _records(segment: Segment, path: Path, folder: Path, tell: Callable[[str], None]) -> Iterator[Item | None]:
    """The records of a file; None for a damaged line."""
    if path.name.endswith(SUFFIX):
        try:
            unpack(path, folder)
        except ZstdError:
            tell(f"{path}: damaged, read as far as it goes")
        path = folder / path.name.removesuffix(SUFFIX)
    for end, found in read(path):
        yield None if isinstance(found, Bad) else Item(segment, end, found)
    if path.parent == folder:
        path.unlink()
