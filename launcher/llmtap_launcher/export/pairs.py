"""Replies that people or judges told apart: pairs for preference training, labels for KTO.

A pair is two replies to the very same messages with the same tools, of which one was rated higher under the same name; the
best goes with each that is worse. A correction is a pair of its own: the corrected reply before the one that was given.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from llmtap_launcher.export.turns import Turn

_RATED = (
    "FROM ratings r JOIN exchanges e ON e.id = r.exchange_id JOIN messages m ON m.hash = e.output_tip "
    "WHERE r.value IS NOT NULL AND e.input_tip IS NOT NULL"
)
_CORRECTED = (
    "FROM ratings r JOIN exchanges e ON e.id = r.exchange_id JOIN messages m ON m.hash = e.output_tip "
    "JOIN messages c ON c.hash = r.correction WHERE c.id <> m.id"
)

#: a better and a worse reply
Pair = tuple[Turn, Turn]


def pairs(conn: sqlite3.Connection, where: str, values: Mapping[str, Any], name: str | None = None) -> Iterator[Pair]:
    """All pairs among the exchanges of the condition `where` (over `exchanges e`). `name`: by this rating only."""
    cursor = conn.cursor()
    cursor.row_factory = None
    for exchange, given, better in cursor.execute(
        f"SELECT e.id, m.id, c.id {_CORRECTED} AND {where} {_named(name)} GROUP BY e.id, c.id ORDER BY e.id DESC",
        {**values, "rating_name": name},
    ):
        yield (exchange, better), (exchange, given)
    found = cursor.execute(
        f"SELECT e.input_tip, e.tools_hash, r.name, m.id, max(e.id), avg(r.value) {_RATED} AND {where} {_named(name)} "
        "GROUP BY e.input_tip, e.tools_hash, r.name, m.id ORDER BY e.input_tip, e.tools_hash",
        {**values, "rating_name": name},
    )
    for _, group in groupby(found, key=lambda row: row[:2]):
        yield from _of_one(list(group))


def _of_one(rows: list[tuple[Any, ...]]) -> Iterator[Pair]:
    """Pairs of the replies to one request."""
    told: set[tuple[int, int]] = set()
    for _, group in groupby(sorted(rows, key=lambda row: row[2]), key=lambda row: row[2]):
        ranked = sorted(group, key=lambda row: (-row[5], -row[4]))
        *_, best, best_exchange, most = ranked[0]
        for *_, reply, exchange, score in ranked[1:]:
            # two names may disagree: the first one said it
            if score < most and (best, reply) not in told and (reply, best) not in told:
                told.add((best, reply))
                yield (best_exchange, best), (exchange, reply)


def rated(
    conn: sqlite3.Connection, where: str, values: Mapping[str, Any], name: str | None = None, threshold: float = 0.0
) -> Iterator[tuple[Turn, bool]]:
    """Every rated reply and whether its mean is above the threshold; of a corrected one both sides."""
    cursor = conn.cursor()
    cursor.row_factory = None
    for exchange, message, better, score in cursor.execute(
        f"SELECT e.id, m.id, max(c.id), avg(r.value) FROM ratings r JOIN exchanges e ON e.id = r.exchange_id "
        "JOIN messages m ON m.hash = e.output_tip LEFT JOIN messages c ON c.hash = r.correction "
        f"WHERE (r.value IS NOT NULL OR c.id IS NOT NULL) AND {where} {_named(name)} GROUP BY e.id ORDER BY e.id DESC",
        {**values, "rating_name": name},
    ):
        if better is not None and better != message:
            yield (exchange, better), True
        if score is not None or better != message:
            yield (exchange, message), score is not None and score > threshold


def _named(name: str | None) -> str:
    return "AND (:rating_name IS NULL OR r.name = :rating_name)" if name is None else "AND r.name = :rating_name"
