"""Rates: own before public, the right day, whole nano-dollars, one row each."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.config import Price
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.pricing import Prices, Rate, choose, cost_of, is_public, own_rates, public_rate

ROW: dict[str, Any] = {
    "model_requested": "m",
    "model_response": "Qwen/Qwen3-8B",
    "backend": "a",
    "started_at": "2026-11-21T01:35:23.456Z",
    "outcome": "ok",
    "cache": None,
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "cached_tokens": 400,
}


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_writer(tmp_path / "c.db")) as opened:
        yield opened


def price(model: str, dollars: float, day: date | None = None, **more: Any) -> Price:
    return Price(model=model, valid_from=day, input_usd_per_million=dollars, output_usd_per_million=dollars * 4, **more)


def test_own_rates_are_whole_nano_dollars() -> None:
    (rate,) = own_rates([price("Qwen/*", 0.1, cached_usd_per_million=0.01)])
    assert rate == Rate("own", "Qwen/*", None, 100_000_000, 400_000_000, 10_000_000, None)
    assert cost_of(rate, 1000, 100, 400) == 600 * 100 + 400 * 10 + 100 * 400
    assert cost_of(rate, 0, 0, 5) == 0
    assert cost_of(own_rates([Price(model="x", gpu_hour_usd=2)])[0], 1, 1, 0) is None


def test_the_first_pattern_that_fits_and_its_latest_day() -> None:
    rates = own_rates(
        [price("Qwen/*", 1), price("Qwen/*", 2, date(2026, 11, 1)), price("Qwen/*", 3, date(2026, 12, 1)), price("*", 9)]
    )

    def chosen(models: list[str], day: str) -> int | None:
        found = choose(rates, models, day)
        return None if found is None else (found.in_nano or 0) // 10**9

    assert [chosen(["Qwen/Q"], day) for day in ("2026-10-31", "2026-11-01", "2026-12-24")] == [1, 2, 3]
    assert chosen(["other", "Qwen/Q"], "2026-11-01") == 9
    assert chosen([], "2026-11-01") is None
    assert choose(rates[1:3], ["Qwen/Q"], "2026-10-01") is None


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


def test_tiers_count_as_their_base() -> None:
    rate = public_rate("claude-sonnet-4-5", provider="anthropic")
    assert rate is not None
    assert (rate.in_nano, rate.out_nano) == (3_000_000_000, 15_000_000_000)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://api.openai.com/v1", True),
        ("http://127.0.0.1:8081", False),
        ("http://gpu1:8000", False),
        ("http://gpu1.lan:8000", False),
        ("http://[::1]:8000", False),
        ("unix:/run/vllm.sock", False),
    ],
)
def test_whose_url(url: str, public: bool) -> None:
    assert is_public(url) is public
