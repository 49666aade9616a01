"""Accounts: periods, what is reserved, and two sources of which the larger counts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llmtap.policy.ledger import Ledger, Period, period_of


def at(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("period", "now", "since", "until"),
    [
        ("day", at(2026, 11, 21, 23, 59), "2026-11-21", at(2026, 11, 22)),
        ("day", at(2026, 12, 31), "2026-12-31", at(2027, 1, 1)),
        ("month", at(2026, 11, 21), "2026-11-01", at(2026, 12, 1)),
        ("month", at(2026, 12, 31, 23, 59), "2026-12-01", at(2027, 1, 1)),
        ("month", at(2028, 2, 29), "2028-02-01", at(2028, 3, 1)),
        ("total", at(2026, 11, 21), "0001-01-01", None),
    ],
)
def test_periods(period: Period, now: float, since: str, until: float | None) -> None:
    assert period_of(period, now) == (since, until)


def test_charges_and_a_new_period() -> None:
    ledger = Ledger()
    now = at(2026, 11, 30, 23)
    assert ledger.account("a", "month", now) == ("2026-11-01", at(2026, 12, 1))
    ledger.charge("a", 70)
    ledger.charge("a", 5)
    ledger.account("a", "month", now + 60)
    assert ledger.spent("a") == 75 and ledger.spent("b") == 0
    ledger.account("a", "month", at(2026, 12, 1))
    assert ledger.spent("a") == 0
    ledger.charge("unknown", 5)
    ledger.reserve("unknown", 5)
    ledger.stored("unknown", "2026-12-01", 5)
    assert ledger.spent("unknown") == 0


def test_what_is_set_aside_counts_until_it_is_given_back() -> None:
    ledger = Ledger()
    ledger.account("a", "day", at(2026, 11, 21))
    ledger.reserve("a", 40)
    assert ledger.spent("a") == 40
    ledger.account("a", "day", at(2026, 11, 22))
    assert ledger.spent("a") == 40, "it runs over midnight"
    ledger.reserve("a", -40)
    ledger.reserve("a", -1)
    assert ledger.spent("a") == 0


def test_what_was_before_and_what_others_charge() -> None:
    ledger = Ledger()
    ledger.account("a", "total", 0)
    ledger.stored("a", "0001-01-01", 100, opening=True)
    ledger.charge("a", 30)
    assert ledger.spent("a") == 130, "at once, not when the database knows"
    ledger.stored("a", "0001-01-01", 130)
    assert ledger.spent("a") == 130, "the same money"
    ledger.stored("a", "0001-01-01", 500)
    assert ledger.spent("a") == 500, "others have spent too"
    ledger.stored("a", "2020-01-01", 10_000)
    assert ledger.spent("a") == 500, "of another period"


def test_another_kind_of_period_is_another_account() -> None:
    ledger = Ledger()
    now = at(2026, 11, 1)
    ledger.account("a", "day", now)
    ledger.charge("a", 5)
    assert ledger.account("a", "month", now)[0] == "2026-11-01"
    assert ledger.spent("a") == 0
    ledger.charge("a", 6)
    ledger.account("a", "month", now)
    assert ledger.spent("a") == 6
