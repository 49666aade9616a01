from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from llmtap_launcher.datasette import percentile


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as conn:
        percentile.register(conn)
        conn.executescript("create table t(g, v); insert into t values (1, 10), (1, 20), (1, NULL), (1, 40), (2, 7), (3, NULL);")
        yield conn


def test_each_group_has_its_own_and_null_does_not_count(conn: sqlite3.Connection) -> None:
    rows = conn.execute("select g, percentile(v, 0), percentile(v, 50), percentile(v, 75), percentile(v, 100) from t group by g")
    assert rows.fetchall() == [(1, 10, 20, 30, 40), (2, 7, 7, 7, 7), (3, None, None, None, None)]


def test_no_rows_is_null(conn: sqlite3.Connection) -> None:
    assert conn.execute("select percentile(v, 50) from t where g = 9").fetchone() == (None,)


# Datasette, once imported anywhere, has SQLite print what its functions raise
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("p", [-1, 100.5])
def test_a_percentage_outside_its_range_is_an_error_of_the_query(conn: sqlite3.Connection, p: float) -> None:
    with pytest.raises(sqlite3.OperationalError):
        conn.execute("select percentile(v, ?) from t", (p,)).fetchone()


def test_digests_add_up_as_their_histogram_does(conn: sqlite3.Connection) -> None:
    conn.executescript(
        """create table d(model, json); create table h(model, bucket, n);
        insert into d values ('a', '{"ttft_ms":{"100":3,"104":1},"outcome":{"ok":4}}'), ('a', '{"ttft_ms":{"104":6}}');
        insert into d values ('b', '{}'), ('b', null);
        insert into h values ('a', 100, 3), ('a', 104, 7);"""
    )
    wanted = [conn.execute("select hist_percentile(bucket, n, ?) from h", (p,)).fetchone()[0] for p in (5, 50, 99)]
    rows = conn.execute(
        "select digest_percentile(json, 'ttft_ms', 5), digest_percentile(json, 'ttft_ms', 50), "
        "digest_percentile(json, 'ttft_ms', 99) "
        "from d group by model order by model"
    ).fetchall()
    assert [list(row) for row in rows] == [wanted, [None, None, None]]
    assert len(set(wanted)) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_digest_has_no_percentile_above_100(conn: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError):
        conn.execute("select digest_percentile('{}', 'ttft_ms', 101)").fetchone()
