"""Which segment is in the database up to where: the `segments` table, with what is current kept in memory.

The offset is saved in the transaction of the rows it stands for: that is what makes every record come in exactly once.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from llmtap.spool.segment import Segment
from llmtap_launcher.store.rollups import COLUMNS, Rollups


@dataclass(slots=True)
class Progress:
    """How far one segment is ingested. `offset` in bytes; `finished`: nothing more will come, its file can go."""

    segment: Segment
    offset: int = 0
    records: int = 0
    bad: int = 0
    finished: bool = False


class Ledger:
    """Reads and saves the progress of segments through the writer's connection."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._known: dict[Segment, Progress] = {}

    def progress(self, segment: Segment) -> Progress:
        """The progress of a segment, from the start for one never seen."""
        known = self._known.get(segment)
        if known is None:
            row = self._conn.execute(
                "SELECT ingested_to, records, bad, finished_at IS NOT NULL FROM segments WHERE name = ?", (segment.filename,)
            ).fetchone()
            known = Progress(segment, row[0], row[1], row[2], bool(row[3])) if row else Progress(segment)
            self._known[segment] = known
        return known

    def save(self, progress: Progress, at: str) -> None:
        """Writes the row, in the caller's transaction. `at`: the time now, for `finished_at`."""
        self._conn.execute(
            "INSERT INTO segments(name, worker, ingested_to, records, bad, finished_at) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT(name) DO UPDATE SET ingested_to = excluded.ingested_to, records = excluded.records, bad = excluded.bad, "
            "finished_at = excluded.finished_at",
            (
                progress.segment.filename,
                progress.segment.worker,
                progress.offset,
                progress.records,
                progress.bad,
                at if progress.finished else None,
            ),
        )

    def settle(self, present: set[Segment], at: str) -> int:
        """Makes an end where files are gone; returns how many exchanges that lost. In the caller's transaction.

        A segment without a file is done. A worker boot without any segment is dead (a living one always has the one it
        writes), and its exchanges still open will not end. Should one end all the same, that corrects it.
        """
        files = {s.filename for s in present}
        for (name,) in self._conn.execute("SELECT name FROM segments WHERE finished_at IS NULL").fetchall():
            if name not in files:
                self._conn.execute("UPDATE segments SET finished_at = ? WHERE name = ?", (at, name))
        alive = {s.run for s in present}
        lost, rollups = 0, Rollups()
        for (boot,) in self._conn.execute("SELECT DISTINCT boot FROM exchanges WHERE outcome = 'open'").fetchall():
            if boot in alive:
                continue
            for row in self._conn.execute(
                f"SELECT {', '.join(COLUMNS)} FROM exchanges WHERE outcome = 'open' AND boot IS ?", (boot,)
            ):
                rollups.add(dict(zip(COLUMNS, tuple(row), strict=True)) | {"outcome": "lost"})
            lost += self._conn.execute(
                "UPDATE exchanges SET outcome = 'lost' WHERE outcome = 'open' AND boot IS ?", (boot,)
            ).rowcount
        rollups.flush(self._conn)
        self._known = {s: p for s, p in self._known.items() if s in present}
        return lost
