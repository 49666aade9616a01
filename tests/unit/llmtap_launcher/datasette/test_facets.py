"""The counts beside the list: the same as counting each column by itself, whatever the page selects."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmtap_launcher.datasette import facets
from llmtap_launcher.store.database import open_writer

STATUSES = ((200, "ok", "stop"), (200, "ok", "length"), (502, "upstream_error", None), (None, "open", None))


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_writer(tmp_path / "c.db")) as opened:
        for n in range(60):
            status, outcome, finish = STATUSES[n % 4]
            opened.execute(
                "INSERT INTO exchanges(uid, started_at, model_requested, key_name, status, outcome, finish_reason, duration_ms) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    f"u{n}",
                    f"2026-11-{n % 28 + 1:02}",
                    ("m", "n", "o")[n % 3],
                    (None, "ci")[n % 5 > 0],
                    status,
                    outcome,
                    finish,
                    n,
                ),
            )
        yield opened


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("", ()),
        ("where model = 'm'", ("model",)),
        ("where status = 200 and outcome = 'ok'", ("status", "outcome")),
        ("where duration_ms > 30", ("duration_ms__gt",)),
        ("where started_at > '2026-11-20'", ("_where",)),
    ],
)
def test_counts(conn: sqlite3.Connection, where: str, given: tuple[str, ...]) -> None:
    inner = f"select * from requests {where}"
    rows = conn.execute(facets.sql_for(inner, given)).fetchall()
    for place, name in enumerate(facets.COLUMNS):
        expected = conn.execute(
            f"select {name}, count(*) as n from ({inner}) where {name} is not null group by 1 order by n desc, 1"
        ).fetchall()
        assert facets.tally(rows, place) == [tuple(row) for row in expected]


def test_a_date_is_looked_up_by_its_own_index(conn: sqlite3.Connection) -> None:
    def plan(where: str, given: str) -> str:
        sql = facets.sql_for(f"select * from requests where {where}", (given, "_sort_desc"))
        return " ".join(row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}"))

    assert "exchanges_counts" in plan("model = 'm'", "model")
    assert "exchanges_started" in plan("started_at > '2026'", "started_at__gt")
