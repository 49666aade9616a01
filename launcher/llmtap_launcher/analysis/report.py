"""What `llmtap analyze` says, as plain data: one shape for the terminal, JSON and the page."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from llmtap_launcher.analysis.load import EXACT, Loaded, Step, load
from llmtap_launcher.selection import Selection

Dimension = Literal["model", "key", "backend", "hour", "day"]
NAMES: tuple[Literal["model", "key", "backend"], ...] = ("model", "key", "backend")

Report = dict[str, Any]


def report(conn: sqlite3.Connection, selection: Selection, by: Sequence[str] = (), exact: int = EXACT) -> Report:
    """The figures of a selection: `total`, `by_time`, and lists `by_model`, `by_key`, `by_backend` (those of `by`; none given:
    all). `exact` says whether percentiles are."""
    step: Step | None = "hour" if "hour" in by else "day" if "day" in by else None
    loaded = load(conn, selection, step, exact)
    out: Report = {
        "since": selection.since,
        "until": selection.until,
        "first": loaded.first,
        "last": loaded.last,
        "exact": loaded.exact,
        "notes": loaded.notes,
        "total": loaded.total.figures(),
    }
    for name in NAMES:
        if name in by or not set(by) & set(NAMES):
            out[f"by_{name}"] = [{name: value, **tally.figures()} for value, tally in loaded.by(name).items()]
    out["step"] = loaded.step
    out["by_time"] = [{"time": period, **tally.figures()} for period, tally in loaded.times.items()]
    return out


def lines(made: Report) -> Iterator[dict[str, Any]]:
    """The same as one object a group, for JSON lines: `group` says of what."""
    about = {name: value for name, value in made.items() if name not in ("total", "step") and not name.startswith("by_")}
    yield {"group": "total", **about, **made["total"]}
    yield from groups(made, NAMES)


def groups(made: Mapping[str, Any], names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of its groupings by `names`, then those by time."""
    for name in names:
        for row in made.get(f"by_{name}", ()):
            yield {"group": name, **row}
    for row in made.get("by_time", ()):
        yield {"group": made["step"], **row}


def filled(rows: Sequence[dict[str, Any]], step: Step, most: int = 2000) -> list[tuple[str, dict[str, Any] | None]]:
    """Rows by time with those between that nothing happened in (None); the latest `most`."""
    if not rows:
        return []
    known = {row["time"]: row for row in rows}
    width = 13 if step == "hour" else 10
    stride = timedelta(hours=1) if step == "hour" else timedelta(days=1)
    first, at = rows[0]["time"], _start(rows[-1]["time"])
    out: list[tuple[str, dict[str, Any] | None]] = []
    while len(out) < most:
        period = at.isoformat()[:width]
        if period < first:
            break
        out.append((period, known.get(period)))
        at -= stride
    return out[::-1]


def _start(period: str) -> datetime:
    return datetime.fromisoformat(period if len(period) == 10 else f"{period}:00").replace(tzinfo=UTC)


__all__ = ["NAMES", "Dimension", "Loaded", "Report", "filled", "lines", "report"]
