"""Costs anew: what the new prices say, in rows, sums and digests alike; machine hours shared out again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.policy.pricing import Rate, cost_of
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.repricing import reprice
from support.crowd import RATES, fill

NEW = Rate("own", "Qwen/*", None, 300_000_000, 900_000_000, 100_000_000, None)
MACHINE = Rate("own", "mistral-*", None, None, None, None, 2_000_000_000)


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    fill(tmp_path / "c.db", 600, 0.4)
    with closing(open_writer(tmp_path / "c.db")) as opened:
        opened.row_factory = sqlite3.Row
        yield opened


def sums(conn: sqlite3.Connection) -> list[int]:
    """The cost of everything: by rows, hours, days and digests."""
    digests = [orjson.loads(json) for (json,) in conn.execute("SELECT json FROM digests WHERE length(period) = 10").fetchall()]
    counts = [item for digest in digests for kind in ("paid", "hit") for item in digest.get(kind, {}).items()]
    paid = [n for name, n in counts if name.endswith(".cost")]
    tables = ("exchanges", "usage_hourly", "usage_daily")
    return [*(conn.execute(f"SELECT coalesce(sum(cost_nanousd), 0) FROM {t}").fetchone()[0] for t in tables), sum(paid)]


def test_new_prices(conn: sqlite3.Connection) -> None:
    before = sums(conn)
    assert len(set(before)) == 1
    done = reprice(conn, [NEW], {}, Selection(), "2026-10-03T00")
    rows: list[Any] = conn.execute("SELECT * FROM exchanges").fetchall()
    wanted = sum(
        cost_of(NEW, r["prompt_tokens"], r["completion_tokens"], r["cached_tokens"] or 0) or 0
        for r in rows
        if (r["model"] or "").startswith("Qwen/") and r["cache"] != "hit"
    )
    assert sums(conn) == [wanted] * 4
    assert (done.exchanges, done.before_nano, done.after_nano) == (600, before[0], wanted)
    assert {r["model"] for r in rows if r["price_id"]} == {"Qwen/Qwen3-8B"}
    again = reprice(conn, [NEW], {}, Selection(), "2026-10-03T00")
    assert (again.changed, again.before_nano) == (0, wanted)
    # and back
    reprice(conn, RATES, {}, Selection(), "2026-10-03T00")
    assert sums(conn) == before


def test_only_the_selection(conn: sqlite3.Connection) -> None:
    before = dict(conn.execute("SELECT id, cost_nanousd FROM exchanges WHERE key_name IS NOT 'ci'").fetchall())
    done = reprice(conn, [], {}, Selection(keys=("ci",)), "2026-10-03T00")
    assert done.after_nano == 0 < done.changed < done.exchanges < 600
    assert dict(conn.execute("SELECT id, cost_nanousd FROM exchanges WHERE key_name IS NOT 'ci'").fetchall()) == before
    assert len(set(sums(conn))) == 1


def test_machine_hours(conn: sqlite3.Connection) -> None:
    reprice(conn, [MACHINE], {}, Selection(), "2026-10-02T05")
    hours = conn.execute(
        "SELECT substr(started_at, 1, 13), backend, sum(cost_nanousd) FROM exchanges "
        "WHERE price_id IS NOT NULL AND outcome <> 'cached' GROUP BY 1, 2 ORDER BY 1"
    ).fetchall()
    assert {cost for hour, _, cost in hours if hour < "2026-10-02T05"} <= {2_000_000_000, None}
    assert all(cost is None for hour, _, cost in hours if hour >= "2026-10-02T05")
    assert len(set(sums(conn))) == 1
    done = reprice(conn, [MACHINE], {}, Selection(), "2026-10-03T00")
    assert done.changed == 0  # by the hour, at the same price: the writer shares the rest out
