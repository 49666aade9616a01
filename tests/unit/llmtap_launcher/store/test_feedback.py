"""Ratings and changes: on their exchange whatever came first, once, the latest counting."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import permutations
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.feedback import Patch, Rating
from llmtap.core.feedback import encode as encode_feedback
from llmtap.core.record import Begin, End, encode
from llmtap.spool.segment import Segment
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.ingest import Applied, Ingester, Item
from llmtap_launcher.store.request_of import messages_at
from support.records import START_US, begin, end

AT = START_US + 5_000_000
UP = Rating("u1", AT, "thumb", "user", 1.0, comment="good")
RIGHT = Rating("u1", AT, "quality", "judge", 0.25, correction={"content": "hi, friend"})
CHANGE = Patch("u1", AT, ["a", "b"], {"ticket": 7, "old": None})


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_writer(tmp_path / "c.db")) as opened:
        opened.execute("BEGIN")
        yield opened


def item(record: Any) -> Item:
    if isinstance(record, dict):
        return Item(Segment("api", "b", 1), 0, orjson.dumps(record))
    return Item(Segment("w0", "b", 1), 0, encode(record) if isinstance(record, Begin | End) else encode_feedback(record))


def apply(conn: sqlite3.Connection, *records: Any) -> Applied:
    return Ingester(conn).apply(map(item, records))


def found(conn: sqlite3.Connection) -> list[Any]:
    ratings = conn.execute(
        "SELECT e.uid, name, value, string_value, source, comment, at FROM ratings r JOIN exchanges e ON e.id = "
        "r.exchange_id ORDER BY name"
    ).fetchall()
    (tip,) = conn.execute("SELECT max(correction) FROM ratings").fetchone()
    corrected = [m["content"] for m in messages_at(conn, tip)]
    changed = conn.execute("SELECT tags, metadata_json FROM exchanges WHERE uid = 'u1'").fetchone()
    return [ratings, corrected, changed, conn.execute("SELECT count(*) FROM feedback_waiting").fetchone()[0]]


def test_every_order_and_batching(conn: sqlite3.Connection) -> None:
    asked = begin(metadata={"old": 1, "kept": 2}, tags=["x"])
    expected = [
        [
            ("u1", "quality", 0.25, None, "judge", None, "2026-11-21T01:35:28.456Z"),
            ("u1", "thumb", 1.0, None, "user", "good", "2026-11-21T01:35:28.456Z"),
        ],
        ["hello", "hi, friend"],
        ('["a","b"]', '{"kept":2,"ticket":7}'),
        0,
    ]
    records = [asked, end(), UP, RIGHT, CHANGE]
    for order in permutations(records):
        if order.index(records[1]) < order.index(asked):
            continue  # one worker writes both, in their order
        for together in (True, False):
            conn.execute("ROLLBACK")
            conn.execute("BEGIN")
            if together:
                assert apply(conn, *order).poison == []
            else:
                for record in order:
                    assert apply(conn, record).poison == []
            assert found(conn) == expected, order
    apply(conn, *records)
    assert found(conn) == expected, "again changes nothing"


def test_the_latest_of_a_source_counts(conn: sqlite3.Connection) -> None:
    apply(conn, begin(), end(), Rating("u1", AT, "thumb", "user", 1.0))
    apply(conn, Rating("u1", AT + 10, "thumb", "user", -1.0), Rating("u1", AT - 10, "thumb", "user", 0.5))
    apply(conn, Rating("u1", AT, "thumb", "judge", string_value="meh"))
    assert conn.execute("SELECT source, value, string_value FROM ratings ORDER BY source").fetchall() == [
        ("judge", None, "meh"),
        ("user", -1.0, None),
    ]


def test_tags_can_be_taken_away(conn: sqlite3.Connection) -> None:
    apply(conn, begin(tags=["x"], metadata={"a": 1}), Patch("u1", AT, [], {"a": None}))
    assert conn.execute("SELECT tags, metadata_json FROM exchanges").fetchone() == (None, None)


def test_nobodys_feedback_waits(conn: sqlite3.Connection) -> None:
    apply(conn, UP, UP, CHANGE)
    assert conn.execute("SELECT count(*) FROM feedback_waiting").fetchone() == (2,)
    assert conn.execute("SELECT count(*) FROM ratings").fetchone() == (0,)
    apply(conn, begin("other"), end("other"))
    assert conn.execute("SELECT count(*) FROM feedback_waiting").fetchone() == (2,)


@pytest.mark.parametrize(
    "record",
    [
        {"v": 1, "t": "rating", "uid": "u1"},
        {"v": 1, "t": "rating", "uid": "u1", "at_us": AT, "name": None, "source": "s"},
        {"v": 1, "t": "rating", "uid": "u1", "at_us": AT, "name": "n", "source": "s", "value": {"a": 1}},
        {"v": 1, "t": "patch", "uid": "u1", "at_us": "now"},
        {"v": 1, "t": "rating", "at_us": AT},
    ],
)
def test_poison_is_in_nobodys_way(conn: sqlite3.Connection, record: dict[str, Any]) -> None:
    applied = apply(conn, begin(), record, UP)
    assert len(applied.poison) == 1
    assert conn.execute("SELECT value FROM ratings").fetchall() == [(1.0,)]
