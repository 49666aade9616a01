"""Rates: own before public, the right day, whole nano-dollars, one row each."""

from __future__ import annotations

import sqlite3
from datetime import date
from typing import Any

from llmtap.core.config import Price
from llmtap.policy.pricing import own_rates
from llmtap_launcher.store.pricing import Prices
from support.rows import row

ROW = row(model_response="Qwen/Qwen3-8B", prompt_tokens=1000, completion_tokens=100, cached_tokens=400)


def price(model: str, dollars: float, day: date | None = None, **more: Any) -> Price:
    return Price(model=model, valid_from=day, input_usd_per_million=dollars, output_usd_per_million=dollars * 4, **more)


def test_a_cost_names_its_row(conn: sqlite3.Connection) -> None:
    prices = Prices(conn, own_rates([price("Qwen/*", 0.1)]))
    cost, ident = prices.cost(ROW)
    assert cost == 1000 * 100 + 100 * 400
    assert conn.execute("SELECT provider, model_glob, in_nano FROM prices WHERE id = ?", (ident,)).fetchone() == (
        "own",
        "Qwen/*",
        100_000_000,
    )
    again = Prices(conn, own_rates([price("Qwen/*", 0.1)]))
    assert again.cost(ROW) == (cost, ident)
    assert conn.execute("SELECT count(*) FROM prices").fetchone() == (1,)
    assert prices.cost(ROW | {"outcome": "cached"}) == (0, ident)
    assert prices.cost(ROW | {"cache": "shared"}) == (0, ident)
    assert prices.cost(ROW | {"prompt_tokens": None, "completion_tokens": None}) == (None, None)
    assert prices.cost(ROW | {"model_response": "tiny"}) == (None, None)


def test_a_rolled_back_row_is_made_again(conn: sqlite3.Connection) -> None:
    prices = Prices(conn, own_rates([price("*", 0.1)]))
    conn.execute("BEGIN")
    prices.cost(ROW)
    conn.execute("ROLLBACK")
    prices.forget()
    _, ident = prices.cost(ROW)
    assert conn.execute("SELECT count(*) FROM prices WHERE id = ?", (ident,)).fetchone() == (1,)


def test_public_models(conn: sqlite3.Connection) -> None:
    prices = Prices(conn, (), {"a": "http://127.0.0.1:8081", "cloud": "https://api.openai.com"})
    row = ROW | {"model_response": "gpt-4o-mini", "cached_tokens": 0}
    assert prices.cost(row)[0] == 1000 * 150 + 100 * 600
    assert conn.execute("SELECT provider, model_glob FROM prices").fetchall() == [("openai", "gpt-4o-mini")]
    assert prices.cost(row | {"backend": "cloud"})[0] == 1000 * 150 + 100 * 600
    for own in ("openai/gpt-oss-20b", "gpt-oss-20b", "meta-llama/Llama-3.1-8B", "gpt-nobody-has"):
        assert prices.cost(row | {"model_response": own, "model_requested": own}) == (None, None)
    with_own = Prices(conn, own_rates([price("gpt-*", 1)]))
    assert with_own.cost(row)[0] == 1000 * 1000 + 100 * 4000
