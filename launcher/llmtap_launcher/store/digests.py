"""`digests`: everything that statistics say of an hour, or a day, of one key, model and backend, as counters in one JSON object.

A million exchanges are some thousand digests, and digests add up: `llmtap analyze` and `llmtap cost` read these and not the rows.
An object has for each kind of counter the counts by name:

    went       succeeded | aborted | failed
    outcome    ok, cached, client_abort …
    error      type of the error, of what failed
    finish     finish reason
    tokens     prompt, completion, cached, reasoning
    paid       `<price id>.requests|prompt|completion|cached|cost`; price id 0: no price. Cost in nano-dollars
    hit        the same of replies out of the gateway's own cache
    ttft_ms …  number of values by bucket of `latency`, of what went well
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

Digest = dict[str, dict[str, int]]
#: hour or day, key, model, backend
Place = tuple[str, str, str, str]

_GOOD = ("ok", "cached")
_TOKENS = ("prompt", "completion", "cached", "reasoning")
_LONGEST = 60

_SELECT = "SELECT json FROM digests WHERE period = ? AND key_name = ? AND model = ? AND backend = ?"
_REPLACE = "INSERT OR REPLACE INTO digests(period, key_name, model, backend, json) VALUES (?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM digests WHERE period = ? AND key_name = ? AND model = ? AND backend = ?"


def went(row: Mapping[str, Any]) -> str:
    """How a row of `exchanges` that has ended went: succeeded, aborted (by its client) or failed."""
    outcome, status = row["outcome"], row["status"]
    if outcome == "client_abort":
        return "aborted"
    return "failed" if outcome not in _GOOD or (status is not None and status >= 400) else "succeeded"


def error_of(row: Mapping[str, Any]) -> str:
    """What a failed row is counted under."""
    kind = row["error_type"]
    if kind:
        return str(kind)[:_LONGEST]
    return str(row["outcome"]) if row["outcome"] not in _GOOD else f"http_{row['status']}"


def count(digest: Digest, row: Mapping[str, Any], sign: int = 1) -> None:
    """Puts all but the histograms of a row into a digest, or takes it out."""
    how = went(row)
    _add(digest, "went", how, sign)
    _add(digest, "outcome", row["outcome"], sign)
    if how == "failed":
        _add(digest, "error", error_of(row), sign)
    if row["finish_reason"]:
        _add(digest, "finish", str(row["finish_reason"])[:_LONGEST], sign)
    for name in _TOKENS:
        if n := row[f"{name}_tokens"]:
            _add(digest, "tokens", name, sign * n)
    bill(digest, row, sign)


def bill(digest: Digest, row: Mapping[str, Any], sign: int = 1) -> None:
    """The part of `count` that depends on prices."""
    kind = "hit" if row["outcome"] == "cached" or row["cache"] in ("hit", "shared") else "paid"
    price = row["price_id"] or 0
    _add(digest, kind, f"{price}.requests", sign)
    for name, column in (
        ("prompt", "prompt_tokens"),
        ("completion", "completion_tokens"),
        ("cached", "cached_tokens"),
        ("cost", "cost_nanousd"),
    ):
        if n := row[column]:
            _add(digest, kind, f"{price}.{name}", sign * n)


def merge(into: Digest, more: Mapping[str, Mapping[str, int]]) -> None:
    """Adds one digest to another."""
    for kind, counts in more.items():
        have = into.get(kind)
        if have is None:
            into[kind] = dict(counts)
            continue
        for name, n in counts.items():
            if name in have:
                have[name] += n
            else:
                have[name] = n


def save(conn: sqlite3.Connection, found: Iterable[tuple[Place, Digest]]) -> None:
    """Adds digests of hours to those stored, and to those of their days, in the caller's transaction."""
    days: dict[Place, Digest] = {}
    hours: list[tuple[Place, Digest]] = []
    for place, digest in found:
        hours.append((place, digest))
        merge(days.setdefault((place[0][:10], *place[1:]), {}), digest)
    for place, digest in (*hours, *days.items()):
        row = conn.execute(_SELECT, place).fetchone()
        whole: Digest = {}
        if row is not None:
            merge(whole, orjson.loads(row[0]))
        merge(whole, digest)
        kept = {kind: some for kind, counts in whole.items() if (some := {name: n for name, n in counts.items() if n})}
        if kept:
            conn.execute(_REPLACE, (*place, orjson.dumps(kept, option=orjson.OPT_SORT_KEYS).decode()))
        elif row is not None:
            conn.execute(_DELETE, place)


def _add(digest: Digest, kind: str, name: str, n: int) -> None:
    counts = digest.get(kind)
    if counts is None:
        counts = digest[kind] = {}
    counts[name] = counts.get(name, 0) + n
