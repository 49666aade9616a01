"""The dashboards page: requests, errors, tokens, latency and cost over time, for all or one model and key.

Read from `usage_hourly`, `usage_daily` and `digests`, which are small whatever the number of exchanges.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import orjson
from markupsafe import Markup

from llmtap_launcher.datasette import charts
from llmtap_launcher.datasette.charts import Series
from llmtap_launcher.datasette.formats import dollars, duration, number
from llmtap_launcher.store.latency import percentile

#: choice -> how many steps back, and whether a step is a day
RANGES: dict[str, tuple[int, bool]] = {
    "24h": (24, False),
    "7d": (168, False),
    "30d": (30, True),
    "90d": (90, True),
    "1y": (365, True),
}
DEFAULT = "24h"
_MOST_NAMES = 200
_PERCENTILES = (50, 95, 99)


@dataclass(slots=True)
class Board:
    """What the page shows. `times`: labels of the steps; `usage`: sums by step; `hist`: buckets by metric and step."""

    span: str
    model: str
    key: str
    times: list[str]
    usage: dict[str, list[int]] = field(default_factory=dict)
    hist: dict[str, list[dict[int, int]]] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


_SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "cost_nanousd")
_METRICS = ("ttft_ms", "itl_ms", "duration_ms")


def load(conn: sqlite3.Connection, args: Mapping[str, str]) -> Board:
    """Everything for one page. `args`: `range`, `model`, `key` of the address; what is none of ours counts as not given."""
    span = args.get("range", DEFAULT)
    span = span if span in RANGES else DEFAULT
    steps, daily = RANGES[span]
    table, column = ("usage_daily", "day") if daily else ("usage_hourly", "hour")
    newest = conn.execute(f"SELECT max({column}) FROM {table}").fetchone()[0]
    moments = _moments(newest, steps, daily)
    index = {moment: i for i, moment in enumerate(moments)}
    board = Board(
        span,
        args.get("model", ""),
        args.get("key", ""),
        [moment.replace("T", " ") + ("" if daily else ":00") for moment in moments],
    )
    board.usage = {name: [0] * steps for name in _SUMS}
    board.hist = {name: [{} for _ in range(steps)] for name in _METRICS}
    if newest is None:
        return board
    board.models, board.keys = (
        [name for (name,) in conn.execute(f"SELECT DISTINCT {what} FROM usage_daily ORDER BY 1 LIMIT {_MOST_NAMES}")]
        for what in ("model", "key_name")
    )
    where, params = _filter(board)
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    for moment, *values in conn.execute(
        f"SELECT {column}, {sums} FROM {table} WHERE {column} >= ? {where} GROUP BY 1", [moments[0], *params]
    ):
        for name, value in zip(_SUMS, values, strict=True):
            board.usage[name][index[moment]] = value
    # a row of `digests` has all histograms of its hour or day: `latency_hist` would be some hundred rows
    for moment, json in conn.execute(
        f"SELECT period, json FROM digests WHERE period >= ? AND length(period) = ? {where}",
        [moments[0], len(moments[0]), *params],
    ):
        if moment in index:
            digest = orjson.loads(json)
            for metric in _METRICS:
                _add(board.hist[metric][index[moment]], digest.get(metric, {}))
    return board


def _add(counts: dict[int, int], more: Mapping[str, int]) -> None:
    for bucket, n in more.items():
        number = int(bucket)
        counts[number] = counts.get(number, 0) + n


def _filter(board: Board) -> tuple[str, list[str]]:
    parts, params = [], []
    for column, value in (("model", board.model), ("key_name", board.key)):
        if value:
            parts.append(f"AND {column} = ?")
            params.append(value)
    return " ".join(parts), params


def _moments(newest: str | None, steps: int, daily: bool) -> list[str]:
    """The steps up to the newest one, as the tables spell them."""
    form = "%Y-%m-%d" if daily else "%Y-%m-%dT%H"
    try:
        last = datetime.strptime(newest or "", form).replace(tzinfo=UTC)
    except ValueError:
        last = datetime.now(UTC)
    step = timedelta(days=1) if daily else timedelta(hours=1)
    return [(last - step * n).strftime(form) for n in range(steps - 1, -1, -1)]


def context(board: Board, path: str) -> dict[str, Any]:
    """The template's `board`. `path` is the page's own."""
    total = {name: sum(values) for name, values in board.usage.items()}
    failed = board.usage["errors"]
    good = [n - bad for n, bad in zip(board.usage["requests"], failed, strict=True)]
    tokens_in, tokens_out = (board.usage[name] for name in ("prompt_tokens", "completion_tokens"))
    cost = [n / 1e9 for n in board.usage["cost_nanousd"]]
    ttft = _merged(board.hist["ttft_ms"])
    boxes = [
        _box("Requests", charts.bars, board, number, [Series("ok", good, "s1"), Series("failed", failed, "bad")]),
        _box("Tokens", charts.bars, board, short, [Series("in", tokens_in, "s1"), Series("out", tokens_out, "s2")]),
        _box("Time to first token", charts.lines, board, duration, _percentiles(board, "ttft_ms")),
        _box("Between two tokens", charts.lines, board, duration, _percentiles(board, "itl_ms")),
        _box("Whole request", charts.lines, board, duration, _percentiles(board, "duration_ms")),
        _box("Cost", charts.bars, board, dollars, [Series("cost", cost, "s3")]),
    ]
    tiles = [
        ("requests", number(total["requests"])),
        (
            "failed",
            f"{number(total['errors'])} ({100 * total['errors'] / total['requests']:.1f} %)" if total["requests"] else "0",
        ),
        ("tokens in", short(total["prompt_tokens"])),
        ("tokens out", short(total["completion_tokens"])),
        (
            "from prefix cache",
            f"{100 * total['cached_tokens'] / total['prompt_tokens']:.0f} %" if total["prompt_tokens"] else "–",
        ),
        *((f"first token p{p}", duration(value) if (value := percentile(ttft, p)) is not None else "–") for p in (50, 95)),
        ("cost", dollars(total["cost_nanousd"] / 1e9)),
    ]
    return {
        "tiles": tiles,
        "boxes": boxes,
        "ranges": [{"name": name, "href": _link(path, board, range=name), "here": name == board.span} for name in RANGES],
        "span": board.span,
        "model": board.model,
        "key": board.key,
        "models": _with(board.models, board.model),
        "keys": _with([key for key in board.keys if key], board.key),
        "path": path,
        "empty": not total["requests"],
        "since": board.times[0],
        "until": board.times[-1],
    }


def _box(title: str, draw: Callable[..., Markup], board: Board, show: charts.Format, series: Sequence[Series]) -> dict[str, Any]:
    legend = [(s.label, s.kind) for s in series] if len(series) > 1 else []
    nothing = not any(value for s in series for value in s.values)
    return {"title": title, "legend": legend, "svg": "" if nothing else draw(series, board.times, show)}


def _percentiles(board: Board, metric: str) -> list[Series]:
    return [
        Series(f"p{p}", [percentile(counts, p) for counts in board.hist[metric]], f"s{n}") for n, p in enumerate(_PERCENTILES, 1)
    ]


def _merged(steps: Sequence[Mapping[int, int]]) -> dict[int, int]:
    out: dict[int, int] = {}
    for counts in steps:
        for bucket, n in counts.items():
            out[bucket] = out.get(bucket, 0) + n
    return out


def _with(names: Sequence[str], chosen: str) -> list[str]:
    return list(names) if not chosen or chosen in names else [chosen, *names]


def _link(path: str, board: Board, **changed: str) -> str:
    given = {"range": board.span, "model": board.model, "key": board.key} | changed
    return f"{path}?{urlencode({k: v for k, v in given.items() if v})}"


def short(value: float) -> str:
    """A count in few characters: `950`, `12.3 k`, `4.5 M`."""
    for unit in ("", " k", " M", " G"):
        if abs(value) < 999.5 or unit == " G":
            return f"{value:.0f}{unit}" if not unit or value >= 99.5 or float(value).is_integer() else f"{value:.1f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")
