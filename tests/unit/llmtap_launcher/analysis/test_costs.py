"""Bills: sums that agree with the rows, savings by the price that was paid, a forecast that follows its rule."""

from __future__ import annotations

import sqlite3
from datetime import date, timedelta
from typing import Any

import pytest

from llmtap_launcher.analysis.costs import costs, forecast
from llmtap_launcher.selection import Selection

RATES = {1: (0.1, 0.4, 0.02), 2: (0.2, 0.2, None)}


def test_sums_agree_with_the_rows(conn: sqlite3.Connection, rows: list[dict[str, Any]]) -> None:
    made = costs(conn, Selection())
    prices = {row["id"]: row["model"] for row in made["prices"]}
    assert set(prices.values()) == {"Qwen/*", "llama-*"}
    number = {name: ident for ident, name in prices.items()}
    rates = {number["Qwen/*"]: RATES[1], number["llama-*"]: RATES[2]}
    total = made["total"]
    assert total["cost_usd"] == pytest.approx(sum(row["cost_nanousd"] or 0 for row in rows) / 1e9)
    hits = [row for row in rows if row["cache"] == "hit" and row["price_id"]]
    assert total["saved_by_gateway_cache_usd"] == pytest.approx(
        sum(
            row["prompt_tokens"] * rates[row["price_id"]][0] + row["completion_tokens"] * rates[row["price_id"]][1]
            for row in hits
        )
        / 1e6,
        abs=1e-7,
    )
    paid = [row for row in rows if row["price_id"] == number["Qwen/*"] and row["cache"] != "hit"]
    assert total["saved_by_prefix_cache_usd"] == pytest.approx(sum(row["cached_tokens"] for row in paid) * 0.08 / 1e6, abs=1e-7)
    assert total["unpriced_tokens"] == sum(
        (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0)
        for row in rows
        if not row["price_id"] and row["cache"] != "hit"
    )
    for name in ("by_key", "by_model", "by_time"):
        assert sum(row["cost_usd"] for row in made[name]) == pytest.approx(total["cost_usd"])
    assert "by_backend" not in made
    assert [row["cost_usd"] for row in made["by_model"]] == sorted((r["cost_usd"] for r in made["by_model"]), reverse=True)


def test_a_span_within_a_day(conn: sqlite3.Connection, rows: list[dict[str, Any]]) -> None:
    since, until = "2026-10-03T05:17:00.000Z", "2026-10-03T19:44:30.000Z"
    made = costs(conn, Selection(since, until), ("hour", "backend"))
    wanted = [row for row in rows if since <= row["started_at"] < until]
    assert made["total"]["requests"] == len(wanted)
    assert made["total"]["cost_usd"] == pytest.approx(sum(row["cost_nanousd"] or 0 for row in wanted) / 1e9)
    assert [row["time"] for row in made["by_time"]] == [f"2026-10-03T{hour:02}" for hour in range(5, 20)]
    assert {row["backend"] for row in made["by_backend"]} == {"a", "b", ""}


def test_tags_have_no_forecast(conn: sqlite3.Connection) -> None:
    assert costs(conn, Selection(tags=("canary",)))["forecast"] is None
    assert costs(conn, Selection(models=("Qwen/*",)))["forecast"]["from_days"] == 4


def test_a_steady_week() -> None:
    last = date(2026, 11, 21)
    days = {last - timedelta(days=n): 2.0 for n in range(1, 40)} | {last: 0.5}
    found = forecast(days)
    assert found is not None
    assert (found["daily_usd"], found["next_30_days_usd"], found["next_30_days_low_usd"]) == (2.0, 60.0, 60.0)
    assert (found["month"], found["month_spent_usd"]) == ("2026-11", 40.5)
    assert found["month_expected_usd"] == 60.0  # 30 days of 2 dollars


def test_a_weekly_rhythm_and_a_rise() -> None:
    last = date(2026, 11, 21)
    days = {last - timedelta(days=n): 10.0 if n <= 7 else 4.0 for n in range(1, 29)} | {last: 30.0}
    found = forecast(days)
    assert found is not None
    assert (found["next_30_days_low_usd"], found["next_30_days_usd"], found["next_30_days_high_usd"]) == (120.0, 300.0, 300.0)
    # the last day has cost more than a day does: nothing more is expected of it
    assert found["month_expected_usd"] == pytest.approx(70 + 13 * 4 + 30 + 9 * 10)


def test_days_without_requests_count() -> None:
    found = forecast({date(2026, 11, 1): 7.0, date(2026, 11, 20): 7.0, date(2026, 11, 21): 0.0})
    assert found is not None
    assert found["daily_usd"] == 1.0


@pytest.mark.parametrize("days", [{}, {date(2026, 11, 21): 3.0}, {date(2026, 11, 20): 0.0, date(2026, 11, 21): 1.0}])
def test_no_forecast_of_nothing(days: dict[date, float]) -> None:
    assert forecast(days) is None
