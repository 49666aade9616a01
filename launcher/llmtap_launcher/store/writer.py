"""The writer: brings what is in the spool into the database, exactly once, and deletes what is in.

A batch of records, the offsets they end at and nothing else make one transaction with `synchronous=FULL`; a segment's
file goes only after the commit that finished it. So the writer may be killed anywhere, and starts again where it was.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zstandard import ZstdError

from llmtap.policy.pricing import Rate
from llmtap.spool.frame import Bad
from llmtap.spool.reader import read
from llmtap.spool.segment import Segment, adopted, scan
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.archive import Archive, cutoff
from llmtap_launcher.store.database import WAL_BYTES, open_writer
from llmtap_launcher.store.exports import Export, insert
from llmtap_launcher.store.gpu_hours import settle_hours
from llmtap_launcher.store.ingest import Ingester, Item
from llmtap_launcher.store.ledger import Ledger, Progress
from llmtap_launcher.store.options import Options, Retention
from llmtap_launcher.store.prune import Pruned, Pruner
from llmtap_launcher.store.quarantine import BadLine, Quarantine
from llmtap_launcher.store.repricing import Repriced, reprice
from llmtap_launcher.store.requests import Requests
from llmtap_launcher.store.rows import iso
from llmtap_launcher.store.status import WriterStatus

log = logging.getLogger("llmtap.writer")

BATCH_RECORDS = 500
BATCH_BYTES = 16_000_000
BATCH_S = 0.2
#: what is due beside ingesting: how often it is looked for, and for how long at a time it may hold up a pass
MAINTAIN_EVERY_S, MAINTAIN_S = 60.0, 0.1
#: an hour is shared out among its requests once it is over by this
HOUR_SETTLED_S = 3600 + 600
_CHECKPOINT_WAIT_MS = 200
_CHECKPOINT_AGAIN_S = 10.0


@dataclass(slots=True)
class _Batch:
    """What the next transaction brings in. `done` are its finished segments, with whether that rests on the lock alone."""

    started: float
    items: list[Item] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    touched: dict[Segment, Progress] = field(default_factory=dict)
    done: dict[Segment, bool] = field(default_factory=dict)
    bytes: int = 0

    def full(self, now: float) -> bool:
        """Whether it is time to commit."""
        return len(self.items) + len(self.bad) >= BATCH_RECORDS or self.bytes >= BATCH_BYTES or now - self.started >= BATCH_S


class Writer:
    """One capture folder's writer. Make it only while holding the folder's `WriterLock`; `close` it.

    `settles`: what is open of workers without a file is lost (not so where files come one at a time: a rebuild).
    """

    def __init__(
        self,
        directory: Path,
        database: Path | None = None,
        *,
        options: Options | None = None,
        settles: bool = True,
        status: WriterStatus | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.spool = directory / "spool"
        self.database = database or directory / "capture.db"
        self.options = options or Options()
        self._settles = settles
        self._requests = Requests(directory)
        self.status = status or WriterStatus()
        self.on_commit: Callable[[], None] = lambda: None
        self._clock = clock
        self._quarantine = Quarantine(directory)
        self._conn: sqlite3.Connection | None = None
        self._settled: set[Segment] | None = None
        self._stuck: set[Segment] = set()
        self._checkpoint_at = 0.0
        self._archive = Archive(directory)
        self._archive_trouble: str | None = None
        self._maintain_at = 0.0

    def run_pass(self) -> int:
        """Ingests everything that is there; returns the records. Raises sqlite3.Error, OSError or StoreError; then nothing
        of the batch at hand is in, and the next call tries it again."""
        conn = self._connection()
        before = self.status.ingested_records
        try:
            present = scan(self.spool)
            self._ingest(present)
            if self._settles:
                self._settle(conn)
        except BaseException:
            self._roll_back()
            raise
        self.status.lag_s = 0.0
        self._measure(present)
        return self.status.ingested_records - before

    def maintain(self, budget_s: float = MAINTAIN_S) -> None:
        """Between two passes: what other commands ask, and what is due of pruning, costs by the hour and old archives, for
        about `budget_s` seconds.

        Looks once a minute, goes on at once while there is more to do. Raises as `run_pass` does.
        """
        now = self._clock()
        if self._conn is None:
            return
        try:
            if self._requests.serve({"prune": self._asked_to_prune, "reprice": self._asked_to_reprice, "export": self.note}):
                self._measure(scan(self.spool))
            if now < self._maintain_at:
                return
            if not self._pruner.retention.nothing and (pruned := self.prune(budget_s)).more:
                if pruned.anything:
                    self._checkpoint(self._conn)
                return
            self._settle_hours(now)
        except BaseException:
            self._roll_back()
            raise
        if self.options.archive_days:
            self._archive.expire(cutoff(now, self.options.archive_days))
        self._maintain_at = now + MAINTAIN_EVERY_S

    def prune(self, budget_s: float | None = None, retention: Retention | None = None) -> Pruned:
        """Prunes, by the options or by `retention`, for about `budget_s` seconds (None: until done)."""
        conn = self._connection()
        pruner = self._pruner if retention is None else Pruner(conn, retention, self._clock)
        pruned = pruner.run(budget_s)
        if pruned.anything:
            self._ingester.forget()
            self.status.pruned += pruned.exchanges
            log.info("pruned: %d exchanges, texts of %d, token times of %d", pruned.exchanges, pruned.bodies, pruned.timings)
        return pruned

    def reprice(self, rates: Sequence[Rate], urls: Mapping[str, str], selection: Selection) -> Repriced:
        """Computes costs anew, by these rates."""
        conn = self._connection()
        done = reprice(conn, rates, urls, selection, iso(round((self._clock() - HOUR_SETTLED_S) * 1e6))[:13])
        self._ingester.forget()
        return done

    def note(self, export: dict[str, Any]) -> dict[str, Any]:
        """Stores a row of `exports`, given as the fields of `Export`."""
        insert(self._connection(), Export(**export))
        return {}

    def _asked_to_prune(self, question: dict[str, Any]) -> dict[str, Any]:
        return asdict(self.prune(None, Retention(**question)))

    def _asked_to_reprice(self, question: dict[str, Any]) -> dict[str, Any]:
        rates = [Rate(**rate) for rate in question["rates"]]
        return asdict(self.reprice(rates, question["urls"], Selection(**question["selection"])))

    def _settle_hours(self, now: float) -> None:
        conn = self._conn
        assert conn is not None
        conn.execute("BEGIN IMMEDIATE")
        settle_hours(conn, iso(round((now - HOUR_SETTLED_S) * 1e6))[:13])
        conn.execute("COMMIT")

    def close(self) -> None:
        """Closes the database; SQLite then folds its write-ahead log in."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    # a pass

    def _ingest(self, present: dict[Segment, int]) -> None:
        batch = self._batch()
        newest = {s[:2]: s.seq for s in present}  # in reading order: the last one stays
        for segment, size in present.items():
            progress = self._ledger.progress(segment)
            # first whether it is final, then its end: the other way round a last record could slip in between
            superseded = newest[segment[:2]] > segment.seq
            final = superseded or self._abandoned(segment)
            if progress.finished and final:
                self._remove(progress, superseded)
                continue
            progress.finished = False
            if size > progress.offset or final:
                batch = self._read(progress, batch)
            if final:
                self._finish(progress, batch)
                batch.done[segment] = superseded
        self._commit(batch)

    def _read(self, progress: Progress, batch: _Batch) -> _Batch:
        segment, path = progress.segment, self._path(progress.segment)
        for end, found in read(path, progress.offset):
            if isinstance(found, Bad):
                batch.bad.append(BadLine(segment.filename, end, found.reason, _bytes(path, end - found.size, end)))
                progress.bad += 1
            else:
                batch.items.append(Item(segment, end, found))
                progress.records += 1
            batch.bytes += end - progress.offset
            progress.offset = end
            batch.touched[segment] = progress
            if batch.full(self._clock()):
                self._commit(batch)
                batch = self._batch()
        return batch

    def _finish(self, progress: Progress, batch: _Batch) -> None:
        """Nobody appends any more: a line without its end is the last breath of a killed worker."""
        segment, path = progress.segment, self._path(progress.segment)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size > progress.offset:
            batch.bad.append(BadLine(segment.filename, size, "torn", _bytes(path, progress.offset, size)))
            progress.bad += 1
            progress.offset = size
        progress.finished = True
        batch.touched[segment] = progress

    def _commit(self, batch: _Batch) -> None:
        if not batch.touched:
            return
        conn, at = self._conn, iso(round(self._clock() * 1e6))
        assert conn is not None
        conn.execute("BEGIN IMMEDIATE")
        applied = self._ingester.apply(batch.items)
        for poison in applied.poison:
            item = poison.item
            batch.bad.append(BadLine(item.segment.filename, item.end, poison.reason, item.json))
            batch.touched[item.segment].bad += 1
        for progress in batch.touched.values():
            self._ledger.save(progress, at)
        self._quarantine.add(batch.bad, at)  # before the commit: after it the line may be nowhere else
        conn.execute("COMMIT")
        self.status.ingested_records += applied.records
        self.status.bad += len(batch.bad)
        if batch.bad:
            log.warning("%d spool lines could not be stored: see quarantine.jsonl", len(batch.bad))
        for gap in applied.gaps:
            self._note_gap(gap.get("worker"), gap.get("dropped"))
        if applied.newest_us:
            self.status.lag_s = round(max(0.0, self._clock() - applied.newest_us / 1e6), 3)
        if self._same_file():  # or else its rows are nowhere: the next pass reads the segments again
            for segment, superseded in batch.done.items():
                self._remove(batch.touched[segment], superseded)
        self._checkpoint(conn)
        self.on_commit()

    def _settle(self, conn: sqlite3.Connection) -> None:
        """Once files have come or gone, and at the start: what of the dead is still open is lost."""
        present = set(scan(self.spool))
        if present == self._settled:
            return
        conn.execute("BEGIN IMMEDIATE")
        lost = self._ledger.settle(present, iso(round(self._clock() * 1e6)))
        conn.execute("COMMIT")
        self.status.lost += lost
        self._settled = present

    # files

    def _path(self, segment: Segment) -> Path:
        return self.spool / segment.filename

    def _abandoned(self, segment: Segment) -> bool:
        with adopted(self._path(segment)) as mine:
            return mine

    def _remove(self, progress: Progress, superseded: bool) -> None:
        """Deletes a finished segment. One adopted by its lock is locked again meanwhile: a worker that had just made it
        would otherwise write into a deleted file."""
        path = self._path(progress.segment)
        try:
            if superseded:
                self._keep(path)
                path.unlink(missing_ok=True)
                return
            with adopted(path) as mine:
                if mine and (not path.exists() or path.stat().st_size <= progress.offset):
                    self._keep(path)
                    path.unlink(missing_ok=True)
                else:
                    progress.finished = False
        except OSError as error:
            if progress.segment not in self._stuck:
                self._stuck.add(progress.segment)
                log.warning("%s: is in the database and cannot be deleted: %s", path, error.strerror)

    def _keep(self, path: Path) -> None:
        """Archives a segment. One that cannot be archived goes all the same: it is in the database, and the disk may be full."""
        if not self.options.archive_days:
            return
        try:
            self._archive.add(path)
        except FileNotFoundError:
            return
        except (OSError, ZstdError) as error:
            trouble = f"{path.name}: not archived: {getattr(error, 'strerror', None) or error}"
            if trouble != self._archive_trouble:
                log.warning("%s", trouble)
            self._archive_trouble = trouble
        else:
            self._archive_trouble = None

    # the database

    def _connection(self) -> sqlite3.Connection:
        if self._conn is not None and self._same_file():
            return self._conn
        self.close()
        conn = open_writer(self.database)
        self._conn, self._settled = conn, None
        self._ingester, self._ledger = Ingester(conn, self.options.rates, self.options.urls), Ledger(conn)
        self._pruner = Pruner(conn, self.options.retention, self._clock)
        self._maintain_at = 0.0
        self._identity = _identity(self.database)
        return conn

    def _same_file(self) -> bool:
        """Whether the database is still the file that was opened (people move and delete files)."""
        return self._identity is not None and _identity(self.database) == self._identity

    def _roll_back(self) -> None:
        """After an error nothing in memory is trusted, the connection least."""
        conn, self._conn = self._conn, None
        if conn is not None:
            try:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
            except sqlite3.Error:
                pass
            conn.close()

    def _checkpoint(self, conn: sqlite3.Connection) -> None:
        now = self._clock()
        if now < self._checkpoint_at or _size(self.database.with_name(self.database.name + "-wal")) <= WAL_BYTES:
            return
        conn.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT_MS}")
        ((held_up, _, _),) = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        conn.execute("PRAGMA busy_timeout = 5000")
        if held_up:  # by a long reader: waiting for it at every commit would make everybody wait
            self._checkpoint_at = now + _CHECKPOINT_AGAIN_S

    # what is told

    def _batch(self) -> _Batch:
        return _Batch(self._clock())

    def _measure(self, present: dict[Segment, int]) -> None:
        self.status.spool_bytes = sum(present.values())
        self.status.db_bytes = _size(self.database) + _size(self.database.with_name(self.database.name + "-wal"))

    def _note_gap(self, worker: object, dropped: object) -> None:
        counts = {k: n for k, n in dropped.items() if type(n) is int} if isinstance(dropped, dict) else {}
        self.status.dropped += sum(counts.values())
        log.warning("worker %s had to leave out of the capture: %s", worker, counts)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes(path: Path, start: int, end: int) -> bytes:
    """Bytes of a segment that are no record, for the quarantine."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(end - start)
