"""A selection of exchanges as tallies: in all, and by model, key, backend and time.

Few exchanges are read row by row, which is exact. Many come from digests: whole days, then whole hours, and the rows of the
broken hours at the ends; so a million take as long as some thousand. Tags are in rows only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import orjson

from llmtap_launcher.analysis.tally import Tally
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.rollups import COLUMNS

#: up to so many exchanges are read one by one
EXACT = 20_000
#: a longer span is shown by day
_HOURLY_SPAN = timedelta(hours=72)

Step = Literal["hour", "day"]
#: key, model, backend
Leaf = tuple[str, str, str]

#: the name an exchange is counted under, as `rollups.model_of` says it
MODEL = "coalesce(nullif(model_response, ''), CASE WHEN backend <> '' THEN nullif(model_requested, '') END, 'other')"
_NAMED = ("started_at", "key_name", "backend")
_ROWS = (
    f"FROM (SELECT id, uid, tags, {', '.join(COLUMNS)}, {MODEL} AS model FROM exchanges) e "
    "LEFT JOIN token_timings t ON t.exchange_id = e.id WHERE e.outcome <> 'open' AND e.started_at IS NOT NULL AND "
)


@dataclass(slots=True)
class Loaded:
    """Tallies of a selection. `exact`: their percentiles are. `first`, `last`: when the first and last of them began (to the hour
    when not exact). `notes`: what a reader should know."""

    exact: bool
    step: Step
    total: Tally
    leaves: dict[Leaf, Tally] = field(default_factory=dict)
    times: dict[str, Tally] = field(default_factory=dict)
    first: str | None = None
    last: str | None = None
    notes: list[str] = field(default_factory=list)

    def by(self, dimension: Literal["key", "model", "backend"]) -> dict[str, Tally]:
        """Tallies by one name, those with most requests first."""
        at = ("key", "model", "backend").index(dimension)
        out: dict[str, Tally] = {}
        for leaf, tally in self.leaves.items():
            out.setdefault(leaf[at], Tally(self.exact)).take(tally)
        return dict(sorted(out.items(), key=lambda item: (-item[1].requests, item[0])))


class _Loader:
    """Fills the tallies. `leaves`, `times`: whether both kinds."""

    def __init__(
        self, conn: sqlite3.Connection, selection: Selection, loaded: Loaded, leaves: bool = True, times: bool = True
    ) -> None:
        self._conn = conn
        self._selection = selection
        self._loaded = loaded
        self._leaves, self._times = leaves, times
        self._width = 13 if loaded.step == "hour" else 10

    def rows(self, since: str | None, until: str | None) -> None:
        """Reads rows one by one."""
        where, values = replace(self._selection, since=since, until=until).where()
        columns = ", ".join("e." + name for name in COLUMNS)
        loaded, first, last = self._loaded, self._loaded.first or "~", self._loaded.last or ""
        # each is counted once, where leaf and time cross
        cells: dict[tuple[Leaf, str], Tally] = {}
        for deltas, model, *found in self._conn.execute(f"SELECT t.deltas, e.model, {columns} {_ROWS} {where}", values):
            row = dict(zip(COLUMNS, found, strict=True))
            at = row["started_at"]
            cell = (row["key_name"] or "", model, row["backend"] or ""), at[: self._width]
            tally = cells.get(cell)
            if tally is None:
                tally = cells[cell] = Tally(loaded.exact)
            tally.add(row, orjson.loads(deltas)[1:] if deltas and row["outcome"] == "ok" else ())
            first, last = min(first, at), max(last, at)
        for (leaf, period), tally in cells.items():
            for other in self._places(leaf, period):
                other.take(tally)
        if last:
            loaded.first, loaded.last = first, last

    def digests(self, since: str, until: str, width: int) -> None:
        """Adds the digests of whole days (`width` 10) or hours (13) from `since` to before `until`."""
        if since >= until:
            return
        of = self._selection
        where, values = Selection(models=of.models, keys=of.keys, backends=of.backends).where("d")
        loaded = self._loaded
        for period, key, model, backend, json in self._conn.execute(
            "SELECT d.period, d.key_name, d.model, d.backend, d.json FROM digests d "
            f"WHERE d.period >= :since AND d.period < :until AND length(d.period) = :width AND {where}",
            {"since": since, "until": until, "width": width, **values},
        ):
            digest: dict[str, dict[str, int]] = orjson.loads(json)
            for tally in self._places((key, model, backend), period[: self._width]):
                tally.merge(digest)
            loaded.first = min(loaded.first or period, period)
            loaded.last = max(loaded.last or period, period)

    def _places(self, leaf: Leaf, period: str) -> Iterator[Tally]:
        loaded = self._loaded
        if self._leaves:
            tally = loaded.leaves.get(leaf)
            if tally is None:
                tally = loaded.leaves[leaf] = Tally(loaded.exact)
            yield tally
        if self._times:
            tally = loaded.times.get(period)
            if tally is None:
                tally = loaded.times[period] = Tally(loaded.exact)
            yield tally

    def span(self, since: str, until: str, step: Step, oldest: str) -> None:
        """All of a span, from digests where they are whole."""
        for kind, begin, end in spans(since, until, step, oldest):
            if kind == "rows":
                self.rows(begin, end)
            else:
                self.digests(begin, end, 10 if kind == "days" else 13)


def load(conn: sqlite3.Connection, selection: Selection, step: Step | None = None, exact: int = EXACT) -> Loaded:
    """The tallies of a selection. `step`: of `times` (None: hours of a short span, days of a long one); `exact`: up to how many
    exchanges rows are read."""
    since, until, requests = extent(conn, selection)
    step = step or ("hour" if _moment(until) - _moment(since) <= _HOURLY_SPAN else "day")
    if selection.by_row:
        requests = _rows(conn, selection)
    oldest = conn.execute("SELECT min(started_at) FROM exchanges").fetchone()[0] or "9"
    whole = oldest[:10] <= since[:10] or requests == 0  # rows are there for all that is counted
    from_rows = selection.by_row or (requests <= exact and whole)
    loaded = Loaded(requests <= exact and from_rows, step, Tally(requests <= exact and from_rows))
    if from_rows:
        if not whole:
            loaded.notes.append(f"exchanges before {oldest[:10]} are deleted; with --tag they are not in these figures")
        _Loader(conn, selection, loaded).rows(selection.since, selection.until)
    else:
        if step == "day" or _moment(until) - _moment(since) <= _HOURLY_SPAN:
            _Loader(conn, selection, loaded).span(since, until, step, oldest)
        else:  # many hours: what is not by hour comes from the few days
            _Loader(conn, selection, loaded, leaves=False).span(since, until, "hour", oldest)
            _Loader(conn, selection, loaded, times=False).span(since, until, "day", oldest)
        if step == "hour" and since < oldest[:10]:
            loaded.notes.append(f"exchanges before {oldest[:10]} are deleted: of those days only whole days are known")
    for tally in loaded.leaves.values():
        loaded.total.take(tally)
    loaded.times = dict(sorted(loaded.times.items()))
    return loaded


def _rows(conn: sqlite3.Connection, selection: Selection) -> int:
    """How many of those named there are, or how many with any tag in the span."""
    if selection.uids is not None:
        return len(selection.uids)
    where, values = Selection(selection.since, selection.until).where()
    return int(conn.execute(f"SELECT count(*) FROM exchanges e WHERE e.tags IS NOT NULL AND {where}", values).fetchone()[0])


def extent(conn: sqlite3.Connection, selection: Selection) -> tuple[str, str, int]:
    """From when to when there is anything of a selection (moments), and about how many exchanges at most."""
    where, values = Selection(models=selection.models, keys=selection.keys, backends=selection.backends).where("u")
    since, until = selection.since or "", selection.until or "9999"
    first, last = conn.execute(
        f"SELECT min(day), max(day) FROM usage_daily u WHERE day >= :since AND day < :until AND {where}",
        {"since": since[:10], "until": until, **values},
    ).fetchone()
    if first is None:
        at = selection.since or selection.until or "1970-01-01T00:00:00.000Z"
        return at, selection.until or at, 0
    since = max(since, f"{first}T00:00:00.000Z")
    until = min(until, _iso(_moment(f"{last}T00:00:00.000Z") + timedelta(days=1)))
    (hours,) = conn.execute(
        f"SELECT sum(requests) FROM usage_hourly u WHERE hour >= :since AND hour < :until AND {where}",
        {"since": since[:13], "until": until, **values},
    ).fetchone()
    (days,) = conn.execute(
        f"SELECT sum(requests) FROM usage_daily u WHERE day >= :since AND day < :until AND {where}",
        {"since": since[:10], "until": until, **values},
    ).fetchone()
    # hours of deleted exchanges are only in their days
    pruned = conn.execute("SELECT min(hour) FROM usage_hourly").fetchone()[0] or "9"
    return since, until, (hours or 0) if pruned[:10] <= since[:10] else days or 0


def spans(since: str, until: str, step: Step, oldest: str) -> Iterator[tuple[Literal["days", "hours", "rows"], str, str]]:
    """A span cut into whole days, whole hours and rests. Days of which the rows are deleted (before `oldest`) come as days."""
    cut = oldest[:10]
    if since < cut:
        end = min(until[:10], cut)
        yield "days", _up(since, 10), end
        if until <= cut:
            return
        since = f"{cut}T00:00:00.000Z"
    first_hour, last_hour = _up(since, 13), until[:13]
    if first_hour >= last_hour:  # within one hour, or over an edge between two
        yield "rows", since, until
        return
    if (edge := _start(first_hour)) > since:
        yield "rows", since, edge
    first_day, last_day = _up(since, 10), until[:10]
    if step == "hour" or first_day >= last_day:
        yield "hours", first_hour, last_hour
    else:
        yield "hours", first_hour, first_day + "T00"
        yield "days", first_day, last_day
        yield "hours", last_day + "T00", last_hour
    if (edge := _start(last_hour)) < until:
        yield "rows", edge, until


def _up(moment: str, width: int) -> str:
    """The first whole hour (13) or day (10) that begins at `moment` or later."""
    short = moment[:width]
    if _start(short) >= moment:
        return short
    return _iso(_moment(_start(short)) + (timedelta(hours=1) if width == 13 else timedelta(days=1)))[:width]


def _start(period: str) -> str:
    return f"{period}:00:00.000Z" if len(period) == 13 else f"{period}T00:00:00.000Z"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
