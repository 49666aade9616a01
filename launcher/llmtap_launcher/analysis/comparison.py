"""Two selections beside each other: differences with confidence intervals, and the same question answered by both."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from llmtap_launcher.analysis import bootstrap
from llmtap_launcher.analysis.bootstrap import Interval
from llmtap_launcher.analysis.load import load
from llmtap_launcher.analysis.sides import Side
from llmtap_launcher.analysis.tally import Tally
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.latency import interpolate

#: latencies are taken of at most so many exchanges a side, chosen by their number's hash
SAMPLE = 20_000
_COLUMNS = ("ttft_ms", "itl_p50_ms", "duration_ms", "tokens_per_second", "prompt_tokens", "completion_tokens", "cost_nanousd")
#: name, unit, column, percentile (None: the mean), factor
_METRICS = (
    ("first token, median", "ms", "ttft_ms", 50, 1.0),
    ("first token, p95", "ms", "ttft_ms", 95, 1.0),
    ("between tokens, median", "ms", "itl_p50_ms", 50, 1.0),
    ("whole request, median", "ms", "duration_ms", 50, 1.0),
    ("whole request, p95", "ms", "duration_ms", 95, 1.0),
    ("tokens a second, median", "", "tokens_per_second", 50, 1.0),
    ("tokens in, mean", "tokens", "prompt_tokens", None, 1.0),
    ("tokens out, mean", "tokens", "completion_tokens", None, 1.0),
    ("cost of 1,000 requests", "usd", "cost_nanousd", None, 1e-6),
)
_MIX = 2654435761  # Knuth's multiplicative hash


@dataclass(slots=True)
class _Sample:
    tally: Tally
    values: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in _COLUMNS})


def compare(
    conn: sqlite3.Connection,
    a: Side,
    b: Side,
    *,
    pairs: int = 3,
    seed: int = 0,
    sample: int = SAMPLE,
    matched: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """`a`, `b`: name and counts; `metrics`: a list of both values, `delta` (b - a), `change` (of a), `low` and `high` of the
    delta's 95 % interval, `differs`; `pairs`: questions both answered, how many with equal replies, the latest few in full.
    `matched`: ids of the exchanges of both that belong together (None: those with the same question)."""
    dice = Random(seed)
    left, right = (_sample(conn, side.selection, sample) for side in (a, b))
    metrics = [_rate(name, kind, left.tally, right.tally, dice) for name, kind in (("failed", "failed"), ("aborted", "aborted"))]
    for name, unit, column, percentile, factor in _METRICS:
        metrics.append(_metric(name, unit, left.values[column], right.values[column], percentile, factor, dice))
    return {
        "a": {"name": a.name, **_counts(left)},
        "b": {"name": b.name, **_counts(right)},
        "metrics": metrics,
        "pairs": _pairs(conn, *_same_question(a.selection, b.selection), pairs)
        if matched is None
        else _pairs(conn, _MATCHED, {"matched": orjson.dumps(matched).decode()}, pairs),
    }


def lines(made: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What `compare` found as one object a group, for JSON lines: the two sides, the differences, the pairs."""
    for name in ("a", "b"):
        yield {"group": name, **made[name]}
    for row in made["metrics"]:
        yield {"group": "metric", **row}
    for row in made["pairs"]["latest"]:
        yield {"group": "pair", **row}


def _sample(conn: sqlite3.Connection, selection: Selection, most: int) -> _Sample:
    out = _Sample(load(conn, selection, exact=0).total)
    good = out.tally.of("outcome", "ok")
    where, values = selection.where()
    if good > most:
        where += f" AND (e.id * {_MIX} & 1048575) < {round(most / good * 1048576)}"
    columns = [out.values[name] for name in _COLUMNS]
    for row in conn.execute(
        f"SELECT {', '.join('e.' + name for name in _COLUMNS)} FROM exchanges e "
        f"WHERE {where} AND e.outcome = 'ok' AND coalesce(e.status, 200) < 400",
        values,
    ):
        for column, value in zip(columns, row, strict=True):
            if value is not None:
                column.append(value)
    return out


def _counts(side: _Sample) -> dict[str, Any]:
    figures = side.tally.figures()
    names = (
        "requests",
        "succeeded",
        "failed",
        "aborted",
        "success_rate",
        "errors",
        "prompt_tokens",
        "completion_tokens",
        "cost_usd",
    )
    return {**{name: figures[name] for name in names}, "sampled": len(side.values["duration_ms"])}


def _rate(name: str, kind: str, a: Tally, b: Tally, dice: Random) -> dict[str, Any]:
    if not a.requests or not b.requests:
        return _row(name, "share", None, None, None)
    left, right = a.of("went", kind) / a.requests, b.of("went", kind) / b.requests
    draws = [bootstrap.rate(side.of("went", kind), side.requests, dice) for side in (a, b)]
    return _row(name, "share", left, right, bootstrap.difference(right - left, draws[0], draws[1]))


def _metric(
    name: str, unit: str, a: Sequence[float], b: Sequence[float], percentile: int | None, factor: float, dice: Random
) -> dict[str, Any]:
    if not a or not b:
        left, right = (None if not side else _value(side, percentile) * factor for side in (a, b))
        return _row(name, unit, left, right, None)
    if percentile is None:
        found = bootstrap.mean_difference(a, b, dice)
    else:
        a, b = sorted(a), sorted(b)
        draws = [bootstrap.quantile(side, percentile, dice) for side in (a, b)]
        found = bootstrap.difference(_value(b, percentile) - _value(a, percentile), draws[0], draws[1])
    scaled = Interval(found.delta * factor, found.low * factor, found.high * factor)
    return _row(name, unit, _value(a, percentile) * factor, _value(b, percentile) * factor, scaled)


def _value(values: Sequence[float], percentile: int | None) -> float:
    return sum(values) / len(values) if percentile is None else interpolate(sorted(values), percentile)


def _row(name: str, unit: str, a: float | None, b: float | None, found: Interval | None) -> dict[str, Any]:
    return {
        "metric": name,
        "unit": unit,
        "a": a,
        "b": b,
        "delta": None if found is None else found.delta,
        "change": None if found is None or not a else found.delta / a,
        "low": None if found is None else found.low,
        "high": None if found is None else found.high,
        "differs": found is not None and found.differs,
    }


# the same question to both


_LATEST = (
    "SELECT e.input_tip, coalesce(e.tools_hash, x'') AS tools, max(e.id) AS id FROM exchanges e "
    "WHERE e.input_tip IS NOT NULL AND e.output_tip IS NOT NULL AND e.outcome IN ('ok', 'cached') AND {} GROUP BY 1, 2"
)
_SHOWN = (
    "uid started_at model key_name backend ttft_ms duration_ms tokens_per_second completion_tokens finish_reason cost_nanousd"
).split()


#: exchanges that both ended well, of those named
_MATCHED = (
    "SELECT x.id AS a_id, y.id AS b_id, x.output_tip = y.output_tip AS same FROM json_each(:matched) p "
    "JOIN exchanges x ON x.id = json_extract(p.value, '$[0]') JOIN exchanges y ON y.id = json_extract(p.value, '$[1]') "
    "WHERE x.output_tip IS NOT NULL AND y.output_tip IS NOT NULL"
)


def _same_question(a: Selection, b: Selection) -> tuple[str, dict[str, Any]]:
    """The latest exchange of each side for every question (the same messages and tools) that both were asked, as SQL."""
    here, values = a.where(prefix="a_")
    there, more = b.where(prefix="b_")
    sql = (
        f"WITH a AS ({_LATEST.format(here)}), b AS ({_LATEST.format(there)}) "
        "SELECT a.id AS a_id, b.id AS b_id, x.output_tip = y.output_tip AS same FROM a JOIN b USING (input_tip, tools) "
        "JOIN exchanges x ON x.id = a.id JOIN exchanges y ON y.id = b.id WHERE a.id <> b.id"
    )
    return sql, {**values, **more}


def _pairs(conn: sqlite3.Connection, sql: str, values: Mapping[str, Any], most: int) -> dict[str, Any]:
    count, same = conn.execute(f"SELECT count(*), coalesce(sum(same), 0) FROM ({sql})", values).fetchone()
    latest = conn.execute(f"{sql} ORDER BY a_id DESC LIMIT :most", {**values, "most": most}).fetchall()
    return {
        "count": count,
        "equal_replies": same,
        "latest": [{"asked": _asked(conn, row[0]), "a": _answer(conn, row[0]), "b": _answer(conn, row[1])} for row in latest],
    }


def _asked(conn: sqlite3.Connection, number: int) -> str | None:
    return _said(conn, "SELECT input_tip FROM exchanges WHERE id = ?", number)


def _answer(conn: sqlite3.Connection, number: int) -> dict[str, Any]:
    row = conn.execute(f"SELECT {', '.join(_SHOWN)} FROM exchanges WHERE id = ?", (number,)).fetchone()
    told = dict(zip(_SHOWN, tuple(row), strict=True))
    cost = told.pop("cost_nanousd")
    told["cost_usd"] = None if cost is None else cost / 1e9
    return {**told, "reply": reply_of(conn, number)}


def reply_of(conn: sqlite3.Connection, number: int) -> str | None:
    """What an exchange's reply says (its first choice), or calls; None when it is not stored."""
    return _said(conn, "SELECT output_tip FROM exchanges WHERE id = ?", number)


def _said(conn: sqlite3.Connection, tip: str, number: int) -> str | None:
    """A message as text; of one that only calls tools, the calls."""
    row = conn.execute(
        f"SELECT b.text, b.json FROM messages m JOIN bodies b ON b.id = m.body_id WHERE m.hash = ({tip})", (number,)
    ).fetchone()
    if row is None:
        return None
    if row[0] is not None or not row[1]:
        return str(row[0] or "")
    calls = orjson.loads(row[1]).get("tool_calls") or ()
    functions = [call.get("function") or {} for call in calls if isinstance(call, dict)]
    return "→ " + ", ".join(f"{f.get('name')}({f.get('arguments') or ''})" for f in functions) if functions else ""
