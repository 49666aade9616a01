"""The slowest exchanges of a selection, by one measure, each split into where its time went."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from llmtap.wire.engine_times import engine_times
from llmtap_launcher.analysis.load import extent
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.request_of import replay_path


@dataclass(frozen=True, slots=True)
class Measure:
    """What is slow: a column, its index, whether low values are the slow ones."""

    column: str
    index: str
    low: bool = False


MEASURES = {
    "duration": Measure("duration_ms", "exchanges_duration"),
    "ttft": Measure("ttft_ms", "exchanges_ttft"),
    "stall": Measure("itl_max_ms", "exchanges_stall"),
    "tokens_per_second": Measure("tokens_per_second", "exchanges_rate", low=True),
}
#: a selection of less than this share of all is looked for by its time, a larger one along the measure's index
_FEW = 0.05

_COLUMNS = (
    "uid started_at model key_name backend endpoint stream status outcome finish_reason duration_ms ttft_ms queue_ms overhead_ms "
    "itl_p50_ms itl_p95_ms itl_max_ms tokens_per_second prompt_tokens completion_tokens cached_tokens n_messages input_tip "
    "response_meta_json"
).split()


@dataclass(frozen=True, slots=True)
class Links:
    """Where the pages and the gateway are, for the links and commands of a row. `keyed`: the gateway asks for a key."""

    pages: str
    gateway: str
    keyed: bool = False


def slowest(
    conn: sqlite3.Connection,
    selection: Selection,
    by: str = "duration",
    top: int = 20,
    threshold: float | None = None,
    links: Links | None = None,
) -> list[dict[str, Any]]:
    """The `top` slowest by a measure of `MEASURES`, the slowest first, with `queue_ms`, `prefill_ms`, `decode_ms`, and with
    `links` a `url` and a `replay` command. `threshold`: only slower ones than that (ms; tokens a second: below it)."""
    measure = MEASURES[by]
    where, values, order = _query(conn, selection, measure)
    column = f"e.{measure.column}"
    if threshold is not None:
        where += f" AND {column} {'<=' if measure.low else '>='} :threshold"
    rows = conn.execute(
        f"SELECT {', '.join('e.' + name for name in _COLUMNS)} FROM exchanges e {where} "
        f"ORDER BY {order} {'ASC' if measure.low else 'DESC'} LIMIT :top",
        {**values, "top": top, "threshold": threshold},
    ).fetchall()
    return [_told(dict(zip(_COLUMNS, tuple(row), strict=True)), links) for row in rows]


def _query(conn: sqlite3.Connection, selection: Selection, measure: Measure) -> tuple[str, dict[str, Any], str]:
    """Index and condition, values, order. SQLite has no statistics of the tables, so the index is chosen here: a walk along the
    measure until there are enough, or all of a small selection sorted."""
    _, _, requests = extent(conn, selection)
    everything = extent(conn, Selection())[2]
    # tags are rare or not: who knows; those that have any are in an index of their own
    along = requests >= everything * _FEW and not selection.tags
    table = "+e" if along else "e"  # a plus keeps SQLite from using an index for that
    where, values = selection.where(table)
    hint = f"INDEXED BY {measure.index}" if along else "INDEXED BY exchanges_tagged" if selection.tags else ""
    column = f"e.{measure.column}" if along else f"+e.{measure.column}"
    return f"{hint} WHERE {column} IS NOT NULL AND +e.outcome <> 'open' AND {where}", values, column


def _told(row: dict[str, Any], links: Links | None) -> dict[str, Any]:
    stored = row.pop("input_tip") is not None
    meta = row.pop("response_meta_json")
    row.update(split(row, orjson.loads(meta) if meta else {}))
    if links is not None:
        name = quote(row["uid"], safe="")
        row["url"] = f"{links.pages}/-/transcript/{name}"
        row["replay"] = _replay(row, links, name) if stored else None
    return row


def split(row: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, float | None]:
    """Where the time of an exchange went, in ms: `queue_ms` (the gateway's queue, and the engine's where it tells), `prefill_ms`
    (from then to the first token), `decode_ms` (from the first token to the end). Engines that tell their own times are believed;
    a reply that was no stream shows neither first token nor decoding, unless its engine tells them."""
    told = engine_times(dict(meta))
    total, ttft, queue = row["duration_ms"], row["ttft_ms"], row["queue_ms"]
    inside = told.queue_s * 1000 if told is not None and told.queue_s is not None else None
    if inside is not None:
        queue = (queue or 0) + inside
    prefill = decode = None
    if told is not None and told.decode_s is not None:
        decode = told.decode_s * 1000
    elif total is not None and ttft is not None and row["stream"]:
        decode = total - ttft
    if told is not None and told.prefill_s is not None:
        prefill = told.prefill_s * 1000
    elif ttft is not None and row["stream"]:
        prefill = ttft - (queue or 0)
    elif total is not None and decode is not None:
        prefill = total - decode - (queue or 0)
    return {name: None if ms is None else round(max(ms, 0.0), 3) for name, ms in
            (("queue_ms", queue), ("prefill_ms", prefill), ("decode_ms", decode))}  # fmt: skip


def _replay(row: Mapping[str, Any], links: Links, name: str) -> str:
    body = shlex.quote(f"{links.pages}/-/request/{name}.json")
    target = shlex.quote(f"{links.gateway}{replay_path(row)}")
    key = ' -H "authorization: Bearer $OPENAI_API_KEY"' if links.keyed else ""  # the shell's: ours are hashes
    return f"curl -s {body} | curl -sN {target} -H 'content-type: application/json'{key} --data-binary @-"
