"""Selections: times as people write them, conditions that SQLite answers as a filter in Python would."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.selection import Selection, SelectionError, parse_moment

NOW = datetime(2026, 11, 21, 9, 30, 15, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", "2026-11-21T07:30:15.250Z"),
        ("90 s", "2026-11-21T09:28:45.250Z"),
        ("1.5d", "2026-11-19T21:30:15.250Z"),
        ("1W", "2026-11-14T09:30:15.250Z"),
        ("now", "2026-11-21T09:30:15.250Z"),
        ("today", "2026-11-21T00:00:00.000Z"),
        ("Yesterday", "2026-11-20T00:00:00.000Z"),
        ("2026-11-01", "2026-11-01T00:00:00.000Z"),
        (" 2026-11-01T09:30 ", "2026-11-01T09:30:00.000Z"),
        ("2026-11-01 09:30:15.123456", "2026-11-01T09:30:15.123Z"),
        ("2026-11-01T09:30Z", "2026-11-01T09:30:00.000Z"),
        ("2026-11-01T09:30+02:00", "2026-11-01T07:30:00.000Z"),
    ],
)
def test_moments(text: str, moment: str) -> None:
    assert parse_moment(text, NOW) == moment
    assert parse_moment(text, NOW.astimezone(timezone(timedelta(hours=5)))) == moment


@pytest.mark.parametrize(
    "text", ["", "2", "2 fortnights", "-2h", "2026-13-01", "99999999999d", "last week", "0001-01-01T00:00+10:00"]
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(SelectionError) as caught:
        parse_moment(text, NOW)
    assert "2026-11-01" in str(caught.value)
    assert "\n" not in str(caught.value)


ROWS = [
    (number, f"2026-11-{day:02}T00:00:00.000Z", model, key, backend, tags)
    for number, (day, model, key, backend, tags) in enumerate(
        (day, model, key, backend, tags)
        for day in (1, 2, 3)
        for model in ("qwen", "Qwen", "qwen*", None)
        for key in ("team-a", "team-b", None)
        for backend, tags in (("a", None), ("b", '["x"]'), ("a", '["x", "y\'; DROP"]'))
    )
]
NAMES = st.lists(st.sampled_from(["qwen", "Qwen", "q*", "?wen", "[qQ]wen", "none", "", "team-a", "team-*", "a", "b"]), max_size=3)


@given(models=NAMES, keys=NAMES, backends=NAMES, tags=st.lists(st.sampled_from(["x", "y'; DROP", "y*", "z"]), max_size=2))
def test_sql_agrees_with_python(models: list[str], keys: list[str], backends: list[str], tags: list[str]) -> None:
    import orjson

    selection = Selection("2026-11-01T12:00:00.000Z", "2026-11-03T00:00:00.000Z", models, keys, backends, tags)
    where, values = selection.where()

    def fits(value: str | None, names: list[str]) -> bool:
        return not names or any(fnmatchcase(value, name) if name and value else not name and not value for name in names)

    wanted = [
        row[0]
        for row in ROWS
        if row[1][8:10] == "02"
        and fits(row[2], models)
        and fits(row[3], keys)
        and fits(row[4], backends)
        and all(any(fnmatchcase(has, tag) for has in orjson.loads(row[5] or "[]")) for tag in tags)
    ]
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.execute("CREATE TABLE exchanges(id, started_at, model, key_name, backend, tags)")
        conn.executemany("INSERT INTO exchanges VALUES (?, ?, ?, ?, ?, ?)", ROWS)
        found = conn.execute(f"SELECT e.id FROM exchanges e WHERE {where} ORDER BY 1", values).fetchall()
    assert [number for (number,) in found] == wanted


def test_nothing_chosen_is_everything() -> None:
    assert Selection().where() == ("1", {})
    assert Selection().everything
    assert not Selection(tags=["x"]).everything
    assert Selection(models=["m"]).where("x", "left_") == ("x.model IN (:left_0)", {"left_0": "m"})
