"""Digests: whatever order rows come and change in, the same counters; nothing left of what was taken out."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap_launcher.store import digests
from llmtap_launcher.store.backfill import fill_digests
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.latency import bucket
from llmtap_launcher.store.rollups import Rollups
from support.crowd import fill, rows


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_writer(tmp_path / "c.db")) as opened:
        yield opened


def stored(conn: sqlite3.Connection) -> dict[tuple[str, ...], Any]:
    found = conn.execute("SELECT period, key_name, model, backend, json FROM digests").fetchall()
    return {tuple(row[:4]): orjson.loads(row[4]) for row in found}


def test_one_row(conn: sqlite3.Connection) -> None:
    row: dict[str, Any] = dict.fromkeys(next(rows(1, 1))[0]) | {
        "started_at": "2026-11-21T01:35:23.456Z", "key_name": "ci", "model_requested": "m", "backend": "a", "status": 200,
        "outcome": "ok", "prompt_tokens": 5, "completion_tokens": 7, "cost_nanousd": 9, "price_id": 3, "ttft_ms": 100.0,
        "finish_reason": "stop",
    }  # fmt: skip
    sums = Rollups()
    sums.add(row, [200, 200])
    sums.add(row | {"outcome": "timeout", "error_type": "x" * 100, "finish_reason": None, "cost_nanousd": None, "price_id": None})
    sums.flush(conn)
    wanted = {
        "went": {"succeeded": 1, "failed": 1},
        "outcome": {"ok": 1, "timeout": 1},
        "error": {"x" * 60: 1},
        "finish": {"stop": 1},
        "tokens": {"prompt": 10, "completion": 14},
        "paid": {
            "3.requests": 1, "3.prompt": 5, "3.completion": 7, "3.cost": 9, "0.requests": 1, "0.prompt": 5, "0.completion": 7,
        },
        "ttft_ms": {str(bucket(100)): 1},
        "itl_ms": {str(bucket(20)): 2},
    }  # fmt: skip
    assert stored(conn) == {("2026-11-21T01", "ci", "m", "a"): wanted, ("2026-11-21", "ci", "m", "a"): wanted}
    sums.rebill(row, row | {"cost_nanousd": 4, "price_id": 5})
    sums.flush(conn)
    paid = stored(conn)["2026-11-21", "ci", "m", "a"]["paid"]
    assert {name: n for name, n in paid.items() if name[0] != "0"} == {
        "5.requests": 1, "5.prompt": 5, "5.completion": 7, "5.cost": 4,
    }  # fmt: skip


def test_any_order_and_changes(conn: sqlite3.Connection) -> None:
    """Rows added, taken out and added again in any order, in batches of any size."""
    made = list(rows(200, 1))
    conn.execute("BEGIN")
    plain = Rollups()
    for row, gaps in made:
        plain.add(row, gaps or ())
    plain.flush(conn)
    conn.execute("COMMIT")
    wanted = stored(conn)
    dice = random.Random(2)
    conn.execute("DELETE FROM digests")
    again = [(row, gaps, sign) for row, gaps in made[:60] for sign in (-1, 1)]
    todo = [*((row, gaps, 1) for row, gaps in made), *again]
    dice.shuffle(todo)
    conn.execute("BEGIN")
    sums = Rollups()
    for row, gaps, sign in todo:
        sums.add(row, gaps or (), sign)
        if dice.random() < 0.1:
            sums.flush(conn)
    sums.flush(conn)
    assert stored(conn) == wanted
    for row, gaps in made:
        sums.add(row, gaps or (), -1)
    sums.flush(conn)
    assert stored(conn) == {}


def test_an_earlier_database_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "capture.db"
    fill(path, 500, 2)
    with closing(open_writer(path)) as conn:
        before = stored(conn)
        usage = conn.execute("SELECT * FROM usage_hourly ORDER BY 1, 2, 3, 4").fetchall()
        conn.execute("DELETE FROM digests")
        conn.execute("BEGIN")
        fill_digests(conn)
        conn.execute("COMMIT")
        assert stored(conn) == before
        assert conn.execute("SELECT * FROM usage_hourly ORDER BY 1, 2, 3, 4").fetchall() == usage


def test_how_it_went() -> None:
    row = {"outcome": "ok", "status": 200, "error_type": None}
    cases = ({}, {"outcome": "cached"}, {"status": 404}, {"outcome": "client_abort", "status": 499}, {"outcome": "lost"})
    assert [digests.went(row | case) for case in cases] == ["succeeded", "succeeded", "failed", "aborted", "failed"]
    assert digests.error_of(row | {"status": 422}) == "http_422"
    assert digests.error_of(row | {"outcome": "lost"}) == "lost"
    assert digests.error_of(row | {"error_type": "TimeoutError"}) == "TimeoutError"


def test_merging_leaves_the_other_alone() -> None:
    one: digests.Digest = {}
    more = {"went": {"succeeded": 2}}
    digests.merge(one, more)
    digests.merge(one, more)
    assert (one, more) == ({"went": Counter(succeeded=4)}, {"went": {"succeeded": 2}})
