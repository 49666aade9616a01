"""An hour's price among its requests: all of it, by tokens, again when one comes late."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.config import Price
from llmtap.core.record import Summary, Usage, encode
from llmtap.policy.pricing import own_rates
from llmtap.spool.segment import Segment
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.gpu_hours import settle_hours, shares
from llmtap_launcher.store.ingest import Ingester, Item
from support.records import START_US, begin, end

HOUR_US = 3_600_000_000


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**6), min_size=1))
def test_shares_add_up(total: int, weights: list[int]) -> None:
    found = list(shares(total, weights))
    assert sum(found) == total
    assert all(part >= 0 for part in found)
    if any(weights):
        assert all(abs(part - total * w / sum(weights)) <= 1 for part, w in zip(found, weights, strict=True))


def test_hours(tmp_path: Path) -> None:
    rates = own_rates([Price(model="served", gpu_hour_usd=2)])
    with closing(open_writer(tmp_path / "c.db")) as conn:
        ingester = Ingester(conn, rates)

        def put(uid: str, hours: float, tokens: int, backend: str = "a") -> None:
            at = {"at_us": START_US + round(hours * HOUR_US)}
            told = Summary(model="served", usage=Usage(tokens, 0, source="upstream"), complete=True)
            records = [begin(uid, **at), end(uid, summary=told, backend=backend, **at)]
            conn.execute("BEGIN")
            ingester.apply(Item(Segment("w0", "b", 1), 0, encode(record)) for record in records)
            conn.execute("COMMIT")

        def costs() -> dict[str, Any]:
            return dict(conn.execute("SELECT uid, cost_nanousd / 1e9 FROM exchanges ORDER BY uid"))

        put("a1", 0, 100)
        put("a2", 0.1, 300)
        put("b1", 0.1, 50, backend="b")
        put("next", 1, 10)
        assert set(costs().values()) == {None}
        assert settle_hours(conn, "2026-11-21T01") == 0
        assert settle_hours(conn, "2026-11-21T02") == 2
        assert costs() == {"a1": 0.5, "a2": 1.5, "b1": 2.0, "next": None}
        put("late", 0.2, 400)
        assert settle_hours(conn, "2026-11-21T02") == 1
        assert costs() == {"a1": 0.25, "a2": 0.75, "b1": 2.0, "late": 1.0, "next": None}
        assert settle_hours(conn, "2026-11-21T02") == 0
        assert conn.execute("SELECT sum(cost_nanousd) FROM usage_daily").fetchone() == (4 * 10**9,)
        assert conn.execute("SELECT sum(requests) FROM usage_daily").fetchone() == (5,)
