"""What exchanges add to the statistics; taking one out again leaves no trace."""

from __future__ import annotations

import sqlite3
from typing import Any

from llmtap_launcher.store.latency import bucket
from llmtap_launcher.store.rollups import Rollups
from support.rows import row

ROW = row(model_requested="alias")


def usage(conn: sqlite3.Connection) -> list[Any]:
    return conn.execute("SELECT * FROM usage_daily ORDER BY 1, 2, 3, 4").fetchall()


def hist(conn: sqlite3.Connection) -> dict[tuple[str, int], int]:
    found = conn.execute("SELECT hour, model, key_name, metric, bucket, n FROM latency_hist").fetchall()
    assert {row[:3] for row in found} <= {("2026-11-21T01", "m", "ci")}
    return {(row[3], row[4]): row[5] for row in found}


def test_sums_and_buckets(conn: sqlite3.Connection) -> None:
    sums = Rollups()
    sums.add(ROW, [200, 200, 5000])
    sums.add(ROW | {"outcome": "upstream_error", "status": 502, "cost_nanousd": None, "prompt_tokens": None})
    sums.add(ROW | {"outcome": "open"})
    sums.flush(conn)
    assert usage(conn) == [("2026-11-21", "ci", "m", "a", 2, 1, 5, 14, 4, 9)]
    assert hist(conn) == {
        ("ttft_ms", bucket(100)): 1,
        ("duration_ms", bucket(900)): 1,
        ("queue_ms", 0): 1,
        ("tokens_per_second", bucket(8)): 1,
        ("itl_ms", bucket(20)): 2,
        ("itl_ms", bucket(500)): 1,
    }
    sums.add(ROW, [200])
    sums.flush(conn)
    assert usage(conn)[0][4:6] == (3, 1)
    assert hist(conn)["itl_ms", bucket(20)] == 3


def test_taking_out_leaves_nothing(conn: sqlite3.Connection) -> None:
    sums = Rollups()
    sums.add(ROW, [200, 300])
    sums.flush(conn)
    sums.add(ROW, [200, 300], -1)
    sums.flush(conn)
    assert (usage(conn), hist(conn)) == ([], {})


def test_a_change_moves_it(conn: sqlite3.Connection) -> None:
    sums = Rollups()
    sums.add(ROW | {"key_name": None})
    sums.flush(conn)
    sums.add(ROW | {"key_name": None}, (), -1)
    sums.add(ROW)
    sums.flush(conn)
    assert [row[:4] for row in usage(conn)] == [("2026-11-21", "ci", "m", "a")]


def test_what_no_backend_took_has_no_name_of_its_own(conn: sqlite3.Connection) -> None:
    sums = Rollups()
    for n in range(3):
        sums.add(
            ROW
            | {"model_response": None, "model_requested": f"made-up-{n}", "backend": None, "outcome": "rejected", "status": 404}
        )
    sums.add(ROW | {"model_response": None, "outcome": "upstream_error", "status": 502})
    sums.flush(conn)
    assert [(row[2], row[4], row[5]) for row in usage(conn)] == [("alias", 1, 1), ("other", 3, 3)]


def test_a_rolled_back_batch_is_forgotten(conn: sqlite3.Connection) -> None:
    sums = Rollups()
    sums.add(ROW, [200])
    sums.clear()
    sums.flush(conn)
    assert (usage(conn), hist(conn)) == ([], {})
