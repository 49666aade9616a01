"""The report as data: groups that add up, time without holes."""

from __future__ import annotations

import sqlite3

import pytest

from llmtap_launcher.analysis.report import filled, lines, report
from llmtap_launcher.selection import Selection


def test_groups_add_up(conn: sqlite3.Connection) -> None:
    made = report(conn, Selection())
    total = made["total"]
    assert total["requests"] == 3000
    for name in ("by_model", "by_key", "by_backend", "by_time"):
        for figure in ("requests", "succeeded", "failed", "aborted", "prompt_tokens", "completion_tokens", "cached_tokens"):
            assert sum(row[figure] for row in made[name]) == total[figure], (name, figure)
        assert sum(row["ttft_ms"]["n"] for row in made[name]) == total["ttft_ms"]["n"]
        assert sum(row["cost_usd"] for row in made[name]) == pytest.approx(total["cost_usd"])
    assert [row["requests"] for row in made["by_key"]] == sorted((row["requests"] for row in made["by_key"]), reverse=True)
    assert made["step"] == "day"
    assert made["exact"]


def test_only_what_is_asked(conn: sqlite3.Connection) -> None:
    made = report(conn, Selection(), ("key", "hour"))
    assert "by_model" not in made
    assert made["step"] == "hour"
    assert made["by_time"][0]["time"] == "2026-10-02T00"
    assert len(made["by_time"]) == 106
    assert "by_model" in report(conn, Selection(), ("day",))


def test_lines(conn: sqlite3.Connection) -> None:
    made = report(conn, Selection())
    found = list(lines(made))
    assert found[0]["group"] == "total"
    assert found[0]["requests"] == 3000
    assert {row["group"] for row in found} == {"total", "model", "key", "backend", "day"}
    assert len(found) == 1 + sum(len(made[name]) for name in ("by_model", "by_key", "by_backend", "by_time"))


def test_time_has_no_holes() -> None:
    rows = [{"time": "2026-10-31T22"}, {"time": "2026-11-01T01"}]
    assert [at for at, _ in filled(rows, "hour")] == ["2026-10-31T22", "2026-10-31T23", "2026-11-01T00", "2026-11-01T01"]
    assert [row for _, row in filled(rows, "hour")] == [rows[0], None, None, rows[1]]
    days = [{"time": "2026-02-27"}, {"time": "2026-03-01"}]
    assert [at for at, _ in filled(days, "day")] == ["2026-02-27", "2026-02-28", "2026-03-01"]
    assert [at for at, _ in filled(days, "day", most=2)] == ["2026-02-28", "2026-03-01"]
    assert filled([], "day") == []
