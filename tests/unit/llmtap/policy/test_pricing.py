"""Rates: own before public, the right day, whole nano-dollars."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from llmtap.core.config import Price
from llmtap.policy.pricing import Rate, RateBook, choose, cost_of, is_public, own_rates, public_rate

DAY = (date(2026, 11, 21) - date(1970, 1, 1)).days


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


def test_a_book_finds_each_once_and_on_its_day(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    known = choose

    def choosing(rates: Any, models: Any, day: str) -> Rate | None:
        looked.append(day)
        return known(rates, models, day)

    monkeypatch.setattr("llmtap.policy.pricing.choose", choosing)
    book = RateBook(own_rates([price("Qwen/*", 1), price("Qwen/*", 2, date(2026, 11, 21))]), {"cloud": "https://api.openai.com"})
    for _ in range(3):
        rate = book.rate("Qwen/Q", "alias", "a", DAY)
        assert rate is not None and rate.in_nano == 2 * 10**9
    before = book.rate("Qwen/Q", "alias", "a", DAY - 1)
    assert before is not None and before.in_nano == 10**9
    assert looked == ["2026-11-21", "2026-11-20"]
    for day, found in (("2026-11-21", rate), ("2026-11-20", before), ("", before)):  # a date does as well
        assert book.rate("Qwen/Q", "alias", "a", day) == found
    assert book.rate("tiny", "tiny", "a", DAY) is None and book.rate(None, None, None, DAY) is None
    public = book.rate("gpt-4o-mini", None, "cloud", DAY)
    assert public is not None and public.provider == "openai"
    for n in range(10_001):
        book.rate(str(n), None, None, DAY)
    assert len(book._found) <= 10_001
