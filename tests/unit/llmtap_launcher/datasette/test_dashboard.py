"""The dashboard: sums of the span, by model and key, whatever is asked for."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from llmtap_launcher.datasette import dashboard
from llmtap_launcher.store.rollups import Rollups
from support.rows import row

ROW = row(
    prompt_tokens=1000,
    completion_tokens=100,
    cached_tokens=500,
    cost_nanousd=2_000_000,
    ttft_ms=200.0,
    duration_ms=3000.0,
    tokens_per_second=30.0,
)


def fill(conn: sqlite3.Connection) -> None:
    sums = Rollups()
    for day, hour, n in (("2026-11-21", "09", 3), ("2026-11-21", "07", 2), ("2026-11-01", "07", 10)):
        for _ in range(n):
            sums.add(ROW | {"started_at": f"{day}T{hour}:10:00.000Z"}, [200, 300])
    sums.add(ROW | {"started_at": "2026-11-21T08:00:00.000Z", "model_response": "other", "key_name": None, "ttft_ms": 900.0})
    sums.add(ROW | {"started_at": "2026-11-21T08:00:00.000Z", "outcome": "upstream_error", "status": 502})
    sums.flush(conn)


def shown(conn: sqlite3.Connection, **args: str) -> dict[str, Any]:
    return dashboard.context(dashboard.load(conn, args), "/-/dashboard")


def tiles(board: dict[str, Any]) -> dict[str, str]:
    return dict((name, value) for name, value in board["tiles"])


def test_a_day(conn: sqlite3.Connection) -> None:
    fill(conn)
    board = shown(conn)
    assert tiles(board)["requests"] == "7"
    assert tiles(board)["failed"] == "1 (14.3 %)"
    assert tiles(board)["tokens in"] == "7 k"
    assert tiles(board)["from prefix cache"] == "50 %"
    assert tiles(board)["cost"] == "$0.014"
    assert tiles(board)["first token p50"].endswith(" ms")
    assert (board["since"], board["until"]) == ("2026-11-20 10:00", "2026-11-21 09:00")
    assert board["models"] == ["m", "other"]
    assert board["keys"] == ["ci"]
    assert all(box["svg"] for box in board["boxes"])
    requests = dashboard.load(conn, {}).usage["requests"]
    assert (requests[-3:], sum(requests)) == ([2, 2, 3], 7)


@pytest.mark.parametrize(
    ("args", "requests"),
    [
        ({"range": "30d"}, "17"),
        ({"range": "1y"}, "17"),
        ({"range": "7d"}, "7"),
        ({"range": "nonsense"}, "7"),
        ({"model": "other"}, "1"),
        ({"model": "m", "key": "ci"}, "6"),
        ({"model": "<script>"}, "0"),
        ({"key": "' or 1 = 1 --"}, "0"),
    ],
)
def test_choices(conn: sqlite3.Connection, args: dict[str, str], requests: str) -> None:
    fill(conn)
    board = shown(conn, **args)
    assert tiles(board)["requests"] == requests
    assert board["empty"] is (requests == "0")
    if "model" in args:
        assert args["model"] in board["models"]
        assert all("model=" in choice["href"] for choice in board["ranges"])


def test_hours_that_became_days_are_in_it(conn: sqlite3.Connection) -> None:
    fill(conn)
    conn.execute("DELETE FROM digests WHERE length(period) = 13 AND period < '2026-11-20'")
    board = dashboard.load(conn, {"range": "30d"})
    assert sum(n for step in board.hist["ttft_ms"] for n in step.values()) == 16


def test_nothing_captured(conn: sqlite3.Connection) -> None:
    for span in dashboard.RANGES:
        board = shown(conn, range=span)
        assert board["empty"]
        assert tiles(board)["from prefix cache"] == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (1234, "1.2 k"), (99_960, "100 k"), (4_560_000, "4.6 M"), (7e12, "7000 G")],
)
def test_short_counts(value: float, text: str) -> None:
    assert dashboard.short(value) == text


@pytest.mark.parametrize("span", dashboard.RANGES)
def test_its_histograms_are_those_of_latency_hist(conn: sqlite3.Connection, span: str) -> None:
    fill(conn)
    board = dashboard.load(conn, {"range": span})
    since = board.times[0].replace(" ", "T")[:13]
    for metric, steps in board.hist.items():
        expected = conn.execute(
            "SELECT bucket, sum(n) FROM latency_hist WHERE metric = ? AND hour >= ? GROUP BY 1", (metric, since)
        ).fetchall()
        merged: dict[int, int] = {}
        for step in steps:
            for bucket, n in step.items():
                merged[bucket] = merged.get(bucket, 0) + n
        assert merged == {row[0]: row[1] for row in expected} and merged
