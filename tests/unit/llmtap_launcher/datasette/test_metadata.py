from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from datasette.utils import escape_fts

from llmtap_launcher.datasette import facets, metadata, percentile
from support.captures import Captures, weather


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Captures(tmp_path_factory.mktemp("captures")) as captures:
        weather(captures)
        return captures.db


def test_the_database_may_have_any_name() -> None:
    named = metadata.for_database("backup may.1")
    assert list(named["databases"]) == ["backup may.1"]
    assert named["databases"]["backup may.1"] is metadata.load()["databases"]["capture"]


def test_the_contract_names_these_queries() -> None:
    assert {"slow", "errors", "transcript", "latency", "cost", "compare", "tokens_per_hour", "search", "conversations"} <= set(
        metadata.load()["databases"]["capture"]["queries"]
    )


def test_facets_of_the_landing_page_are_columns_of_its_view(db: Path) -> None:
    landing = metadata.load()["databases"]["capture"]["tables"]["requests"]
    with closing(sqlite3.connect(db)) as conn:
        columns = {c[0] for c in conn.execute("select * from requests limit 0").description}
    together = [facet["together"] for facet in landing["facets"]]
    assert sorted(together) == sorted(facets.COLUMNS)
    assert {*together, landing["sort_desc"], *metadata.HIDDEN, *metadata.OPTIONAL} <= columns


@pytest.mark.parametrize("name", sorted(metadata.load()["databases"]["capture"]["queries"]))
@pytest.mark.parametrize("value", ["", "  ", "nonsense'\"", "1"])
def test_every_query_runs_whatever_its_parameters(db: Path, name: str, value: str) -> None:
    query = metadata.load()["databases"]["capture"]["queries"][name]
    with closing(sqlite3.connect(db)) as conn:
        percentile.register(conn)
        conn.create_function("escape_fts", 1, escape_fts)
        conn.execute(
            query["sql"], dict.fromkeys(("limit_ms", "hours", "days", "turns", "q", "id", "model", "key", "a", "b"), value)
        ).fetchall()


def test_hidden_is_what_no_row_has() -> None:
    rows = [{c: None for c in metadata.OPTIONAL}, {**{c: "" for c in metadata.OPTIONAL}, "model": "m"}]
    assert metadata.hidden(rows) == {*metadata.HIDDEN, *metadata.OPTIONAL} - {"model"}
    assert metadata.hidden([]) == set(metadata.HIDDEN)


@pytest.mark.parametrize(
    ("column", "heading"),
    [("duration_ms", "duration"), ("key_name", "key"), ("ttft_p95_ms", "ttft p95"), ("_ms", "_ms"), ("x", "x")],
)
def test_headings(column: str, heading: str) -> None:
    assert metadata.label(column) == heading
