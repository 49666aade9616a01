"""One export from beginning to end: selects, builds rows, redacts, draws, writes, and says what came of it."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export import exchanges, query, shares
from llmtap_launcher.export.conversations import Asks, Conversation, Conversations
from llmtap_launcher.export.formats import Format, Row, conversation_row, pair_row, rated_row
from llmtap_launcher.export.normal import Unfit
from llmtap_launcher.export.options import Drawn, Shape, Wanted
from llmtap_launcher.export.output import Lines, Printed, Target, Written
from llmtap_launcher.export.pairs import pairs, rated
from llmtap_launcher.export.parquet import NeedsParts, Table
from llmtap_launcher.export.paths import Paths
from llmtap_launcher.export.pictures import Pictures
from llmtap_launcher.export.redact import Redactor
from llmtap_launcher.export.turns import Seen, turns

_BATCH = 64
#: most of the index of the messages' hashes of a million exchanges
_CACHE_KB = 98_304

#: how many rows are done, of how many (None: not known)
Tell = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What to export. `out`: the file (None: standard output); `score`, `threshold`: which ratings tell good from bad."""

    format: Format
    out: Path | None
    wanted: Wanted = field(default_factory=Wanted)
    shape: Shape = field(default_factory=Shape)
    drawn: Drawn = field(default_factory=Drawn)
    score: str | None = None
    threshold: float = 0.0
    parquet: bool = False


@dataclass(slots=True)
class Report:
    """What came of it. `left_out`: how many rows were not written, by reason."""

    rows: int = 0
    selected: int = 0
    superseded: int = 0
    duplicates: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    redacted: dict[str, int] = field(default_factory=dict)
    pictures: int = 0
    files: list[Written] = field(default_factory=list)
    selection: str = ""

    def leave_out(self, reason: str) -> None:
        """Counts a row that is not written."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def manifest(self, job: Job) -> dict[str, Any]:
        """As it is kept in `exports`."""
        options = asdict(job.shape) | asdict(job.drawn) | asdict(job.wanted)
        return {
            "format": job.format.name,
            "selection": self.selection,
            "files": [asdict(file) for file in self.files],
            "options": options,
            "exchanges": self.selected,
            "superseded": self.superseded,
            "duplicates": self.duplicates,
            "left_out": self.left_out,
            "redacted": self.redacted,
            "pictures": self.pictures,
        }


def export(conn: sqlite3.Connection, job: Job, redactor: Redactor | None = None, tell: Tell = lambda *_: None) -> Report:
    """Does it. `conn` is read-only; all of it sees one moment of the database. Raises LlmtapError; then no file is there.
    Nor is one where no row was: `files` is empty then."""
    if conn.in_transaction:
        raise LlmtapError("an export needs a connection of its own")
    conn.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
    conn.execute("BEGIN")
    collecting = gc.isenabled()
    gc.disable()  # rows hold no circles, and looking for some costs a fifth of the time
    try:
        try:
            return _export(conn, job, redactor, tell, parts=False)
        except NeedsParts:
            if redactor is not None:
                redactor.counts.clear()
            return _export(conn, job, redactor, tell, parts=True)
    except sqlite3.Error as error:
        raise LlmtapError(f"the database cannot be read: {error}") from error
    finally:
        if collecting:
            gc.enable()
        conn.rollback()


def validation_path(out: Path) -> Path:
    """Where the validation rows go: `data.jsonl` → `data.validation.jsonl`."""
    return out.with_name(f"{out.stem}.validation{out.suffix}")


def images_path(out: Path) -> Path:
    """Where picture files go: `data.jsonl` → `data.images`."""
    return out.with_name(f"{out.stem}.images")


def _export(conn: sqlite3.Connection, job: Job, redactor: Redactor | None, tell: Tell, *, parts: bool) -> Report:
    report = Report()
    sides = _Sides(job, parts)
    try:
        source = _Source(conn, job, report)
        for root, row in source.rows(tell):
            if not sides.wanted(root):
                report.leave_out("not in the sample")
                continue
            if redactor is not None:
                row = redactor.value(row)
            sides.write(root, row)
            report.rows += 1
            if report.rows == job.drawn.limit:
                break
        if report.rows:  # an empty file would take the place of a full one
            report.files = sides.finish()
    finally:
        sides.abandon()
    report.selected, report.superseded, report.duplicates = source.seen.selected, source.seen.superseded, source.seen.duplicates
    report.pictures = source.pictures.count
    report.redacted = dict(redactor.counts) if redactor is not None else {}
    return report


class _Sides:
    """The files of an export: one, or one for training and one for validation."""

    def __init__(self, job: Job, parts: bool) -> None:
        self._drawn = job.drawn
        self._targets: list[Target] = []
        paths = [job.out]
        if job.drawn.validation and job.out is not None:
            paths.append(validation_path(job.out))
        try:
            for path in paths:
                self._targets.append(self._target(job, path, parts))
        except BaseException:
            self.abandon()
            raise

    @staticmethod
    def _target(job: Job, path: Path | None, parts: bool) -> Target:
        if path is None:
            return Printed()
        return Table(path, job.format.name, parts=parts) if job.parquet else Lines(path)

    def wanted(self, root: bytes) -> bool:
        return self._drawn.sample >= 1 or shares.within(self._drawn.sample, f"sample {self._drawn.salt}", root)

    def write(self, root: bytes, row: Row) -> None:
        side = len(self._targets) > 1 and shares.within(self._drawn.validation, self._drawn.salt, root)
        self._targets[side].write(row)

    def finish(self) -> list[Written]:
        return [target.finish() for target in self._targets]

    def abandon(self) -> None:
        for target in self._targets:
            target.abandon()


class _Source:
    """The rows, each with the root of its conversation (empty when nobody asks)."""

    def __init__(self, conn: sqlite3.Connection, job: Job, report: Report) -> None:
        self._conn = conn
        self._job = job
        self._report = report
        self.seen = Seen()
        self._paths = Paths(conn)
        folder = images_path(job.out) if job.shape.images == "files" and job.out is not None else None
        self.pictures = Pictures(conn, folder)
        self._where, self._values = query.where(conn, job.wanted)
        report.selection = _literal(self._where, self._values)
        self._roots = job.drawn.sample < 1 or job.drawn.validation > 0

    def rows(self, tell: Tell) -> Iterator[tuple[bytes, Row]]:
        kind = self._job.format.kind
        if kind == "exchange":
            return self._exchanges(tell)
        if kind == "conversation":
            return self._conversations(tell)
        return self._pairs(tell) if kind == "pair" else self._rated(tell)

    def _conversations(self, tell: Tell) -> Iterator[tuple[bytes, Row]]:
        drawn, shape = self._job.drawn, self._job.shape
        found = turns(
            self._conn,
            self._paths,
            self._where,
            self._values,
            self.seen,
            every=drawn.every_turn,
            duplicates=drawn.duplicates,
        )
        provenance = self._job.format.weights or shape.mark
        make = self._maker(provenance)
        to_row = conversation_row(self._job.format.name)
        done = 0
        for batch in batched(found, _BATCH):
            for made in make.of(batch):
                done += 1
                if isinstance(made, Unfit):
                    self._report.leave_out(str(made))
                    continue
                try:
                    yield made.root, to_row(made, shape)
                except Unfit as unfit:
                    self._report.leave_out(str(unfit))
            tell(done, len(found))

    def _pairs(self, tell: Tell) -> Iterator[tuple[bytes, Row]]:
        make = self._maker(False)
        done = 0
        for batch in batched(pairs(self._conn, self._where, self._values, self._job.score), _BATCH // 2):
            made = iter(list(make.of([turn for pair in batch for turn in pair])))
            for chosen, rejected in zip(made, made, strict=True):
                done += 1
                unfit = next((one for one in (chosen, rejected) if isinstance(one, Unfit)), None)
                if unfit is not None or not isinstance(chosen, Conversation) or not isinstance(rejected, Conversation):
                    self._report.leave_out(str(unfit))
                    continue
                try:
                    yield chosen.root, pair_row(self._job.format.name, chosen, rejected)
                except Unfit as error:
                    self._report.leave_out(str(error))
            tell(done, None)
        self.seen.selected = done

    def _rated(self, tell: Tell) -> Iterator[tuple[bytes, Row]]:
        make = self._maker(False)
        done = 0
        found = rated(self._conn, self._where, self._values, self._job.score, self._job.threshold)
        for batch in batched(found, _BATCH):
            for made, (_, label) in zip(make.of([turn for turn, _ in batch]), batch, strict=True):
                done += 1
                if isinstance(made, Unfit):
                    self._report.leave_out(str(made))
                else:
                    yield made.root, rated_row(made, label)
            tell(done, None)
        self.seen.selected = done

    def _exchanges(self, tell: Tell) -> Iterator[tuple[bytes, Row]]:
        raw = exchanges.Raw(self._conn, self._paths) if self._job.format.name == "raw" else None
        for batch in batched(exchanges.selected(self._conn, self._where, self._values), _BATCH):
            self.seen.selected += len(batch)
            roots = self._roots_of(batch) if self._roots else {}
            made = raw.of(batch) if raw is not None else (exchanges.batch_row(self._conn, ident) for ident in batch)
            for ident, row in zip(batch, made, strict=True):
                if row is None:
                    self._report.leave_out("requests that are not stored")
                else:
                    yield roots.get(ident, b""), row
            tell(self.seen.selected, None)

    def _roots_of(self, batch: tuple[int, ...]) -> dict[int, bytes]:
        """Of exchanges of any kind: the root of the conversation, else the exchange itself."""
        found = self._conn.execute(
            f"SELECT e.id, c.root_hash, e.uid FROM exchanges e LEFT JOIN conversations c ON c.id = e.conversation_id "
            f"WHERE e.id IN ({','.join('?' * len(batch))})",
            batch,
        )
        return {ident: root or uid.encode() for ident, root, uid in map(tuple, found)}

    def _maker(self, provenance: bool) -> Conversations:
        asks = Asks(self._roots, provenance, self.seen.replies)
        return Conversations(self._conn, self._paths, self._job.shape, self.pictures, asks)


def _literal(where: str, values: dict[str, Any]) -> str:
    """The condition with its values in it, to be read and run again."""
    for name in sorted(values, key=len, reverse=True):
        value = values[name]
        text = str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"
        where = where.replace(f":{name}", text)
    return where
