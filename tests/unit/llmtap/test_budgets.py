"""Budgets: refused when spent, charged by what was counted, durable through the database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.budgets import Budgets, BudgetUnknown, Costs
from llmtap.core.config import Config
from llmtap.core.endpoints import endpoint_of
from llmtap.core.errors import TooMany
from llmtap.core.record import Summary, Usage
from llmtap.exchange import Exchange
from llmtap.policy.keys import client_of
from llmtap.wire.request import parse

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
PRICES = [{"model": "m*", "input_usd_per_million": 1000, "output_usd_per_million": 2000}]  # a thousandth of a dollar a token


class Desk:
    """Budgets over a database that may be there."""

    def __init__(self, folder: Path, budget: float = 1.0, period: str = "month", **more: Any) -> None:
        self.now = NOW
        key = {"name": "a", "key": "secret", "budget_usd": budget, "budget_period": period}
        self.config = Config.model_validate(
            {"auth": {"enabled": True, "keys": [key]}, "prices": PRICES, "capture": {"dir": str(folder)}, **more}
        )
        self.gate = Budgets(self.config, lambda: self.now)
        self.costs = Costs(self.gate.book, self.gate)
        self.client = client_of(self.config.auth.keys[0])

    def known(self) -> Desk:
        self.gate._take(self.gate._read(self.gate._asked()), opening=True)
        return self

    def arrive(self, body: bytes = b'{"model":"m1","max_tokens":90,"messages":[]}') -> tuple[http.HTTPFlow, Exchange]:
        endpoint = endpoint_of("/v1/chat/completions")
        assert endpoint is not None
        ex = Exchange("POST", "/v1/chat/completions", endpoint, "openai", "")
        ex.client, ex.body, ex.parsed, ex.started_us = self.client, body, parse("chat", body), round(self.now * 1e6)
        self.gate.on_requestheaders(tflow.tflow(), ex)
        self.gate.on_request(tflow.tflow(), ex)
        return tflow.tflow(), ex

    def finish(self, ex: Exchange, prompt: int | None = None, completion: int | None = None, **more: Any) -> None:
        ex.forwarded = 1.0
        ex.summary = Summary(model="m1", usage=Usage(prompt, completion))
        for name, value in more.items():
            setattr(ex, name, value)
        self.gate.on_finish(tflow.tflow(), ex)
        self.costs.on_finish(tflow.tflow(), ex)

    @property
    def spent(self) -> float:
        return self.gate._ledger.spent("a") / 1e9


def stored(folder: Path, *rows: tuple[str, str, int]) -> None:
    with closing(sqlite3.connect(folder / "capture.db")) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS usage_daily (day TEXT, key_name TEXT, cost_nanousd INTEGER)")
        db.executemany("INSERT INTO usage_daily VALUES (?, ?, ?)", rows)


def test_charged_by_what_was_counted_until_it_is_spent(tmp_path: Path) -> None:
    desk = Desk(tmp_path).known()
    _, ex = desk.arrive()
    assert desk.spent == pytest.approx(0.191), "set aside: 11 and 90 tokens"
    desk.finish(ex, 100, 200)
    assert desk.spent == pytest.approx(0.5) and ex.cost_nano == 500_000_000
    _, ex = desk.arrive()
    desk.finish(ex, 400, 100)
    assert desk.spent == pytest.approx(1.1)
    with pytest.raises(TooMany) as caught:
        desk.arrive()
    assert (caught.value.code, caught.value.retry_after_s) == ("budget_exceeded", 9.5 * 86_400)
    assert "of this month is spent" in caught.value.message
    desk.now = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    desk.arrive()


def test_many_at_once_do_not_spend_the_same_money(tmp_path: Path) -> None:
    desk = Desk(tmp_path).known()
    let_in = []
    with pytest.raises(TooMany):
        while True:
            let_in.append(desk.arrive()[1])
    assert len(let_in) == 6, "0.191 of a dollar each"
    desk.finish(let_in[0], 1, 1)
    desk.finish(let_in[1], 1, 1)
    desk.arrive()


@pytest.mark.parametrize(
    ("usage", "more", "cost"),
    [
        ((10, 20), {"outcome": "client_abort"}, 0.05),
        ((10, 20), {"cache": "hit"}, 0.0),
        ((10, 20), {"cache": "shared"}, 0.0),
        ((10, 20), {"forwarded": None}, 0.0),
        ((None, None), {}, 0.0),
        ((None, 5), {}, 0.01),
    ],
)
def test_what_costs(tmp_path: Path, usage: tuple[int | None, int | None], more: dict[str, Any], cost: float) -> None:
    desk = Desk(tmp_path).known()
    _, ex = desk.arrive()
    desk.finish(ex, *usage, **more)
    assert desk.spent == pytest.approx(cost)


def test_a_model_without_a_price_costs_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path).known()
    _, ex = desk.arrive(b'{"model":"free","messages":[]}')
    assert desk.spent == 0
    ex.summary = Summary(model="free")
    desk.finish(ex, 10, 10, summary=Summary(model="free", usage=Usage(10, 10)))
    assert desk.spent == 0 and ex.cost_nano == 0


def test_it_survives_a_restart(tmp_path: Path) -> None:
    stored(
        tmp_path,
        ("2026-10-31", "a", 5 * 10**9),
        ("2026-11-01", "a", 6 * 10**8),
        ("2026-11-21", "a", 3 * 10**8),
        ("2026-11-21", "b", 9**9),
    )
    desk = Desk(tmp_path).known()
    assert desk.spent == pytest.approx(0.9)
    _, ex = desk.arrive()
    desk.finish(ex, 100, 0)
    with pytest.raises(TooMany):
        desk.arrive()
    assert Desk(tmp_path, period="day").known().spent == pytest.approx(0.3)
    assert Desk(tmp_path, period="total").known().spent == pytest.approx(5.9)
    with pytest.raises(TooMany) as caught:
        Desk(tmp_path, period="total").known().arrive()
    assert caught.value.retry_after_s == 86_400


def test_what_others_spend_is_read_later(tmp_path: Path) -> None:
    stored(tmp_path)
    desk = Desk(tmp_path).known()
    desk.arrive()
    stored(tmp_path, ("2026-11-21", "a", 2 * 10**9))
    desk.gate._take(desk.gate._read(desk.gate._asked()))
    with pytest.raises(TooMany):
        desk.arrive()


def test_what_is_not_known_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "capture.db").write_bytes(b"this is no database" * 100)
    desk = Desk(tmp_path).known()
    with pytest.raises(BudgetUnknown) as caught:
        desk.arrive()
    assert (caught.value.status, caught.value.code) == (503, "budget_unavailable")
    assert "cannot be read" in caplog.text
    (tmp_path / "capture.db").unlink()
    desk.known().arrive()
    assert Desk(tmp_path, capture={"enabled": False}).known().spent == 0


def test_a_database_that_has_only_begun(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "capture.db")) as db, db:
        db.execute("CREATE TABLE something (x)")
    Desk(tmp_path).known().arrive()


def test_keys_without_a_budget_are_not_asked(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.client = client_of(Config.model_validate({"auth": {"keys": [{"name": "b", "key": "s"}]}}).auth.keys[0])
    _, ex = desk.arrive()
    desk.finish(ex, 1000, 1000)
    assert ex.cost_nano == 3 * 10**9, "the cost is known all the same" and desk.gate._ledger.spent("b") == 0


def test_other_budgets_at_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path).known()
    _, ex = desk.arrive()
    desk.finish(ex, 500, 500)
    desk.gate.reload(Desk(tmp_path, budget=5).config)
    desk.client = client_of(Desk(tmp_path, budget=5).config.auth.keys[0])
    desk.arrive()
    assert desk.spent == pytest.approx(1.691)


async def test_it_follows_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr("llmtap.budgets.EVERY_S", 0.001)
    stored(tmp_path)
    desk = Desk(tmp_path)
    desk.gate.start()
    desk.gate.start()
    stored(tmp_path, ("2026-11-21", "a", 7 * 10**8))
    async with asyncio.timeout(10):
        while desk.spent < 0.7:
            await asyncio.sleep(0.001)
    task = desk.gate._task
    desk.gate.stop()
    assert task is not None
    with pytest.raises(asyncio.CancelledError):
        await task
