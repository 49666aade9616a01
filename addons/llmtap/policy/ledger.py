"""What keys have spent, period by period, in billionths of a dollar. Pure; times are passed in.

Known from two sides: what this process has charged since it runs (added to what was known when it began), and what the
database says, which has the charges of other processes too, a little later. The larger counts: neither forgets what the other
has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

Period = Literal["day", "month", "total"]
NANO = 1_000_000_000


def period_of(period: Period, now: float) -> tuple[str, float | None]:
    """The period that holds at `now` (epoch seconds): its first day in ISO form, and when it ends (None: never). UTC."""
    if period == "total":
        return "0001-01-01", None
    today = datetime.fromtimestamp(now, UTC).date()
    if period == "day":
        return today.isoformat(), _epoch(date.fromordinal(today.toordinal() + 1))
    following = date(today.year + today.month // 12, today.month % 12 + 1, 1)
    return today.replace(day=1).isoformat(), _epoch(following)


def _epoch(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


@dataclass(slots=True)
class _Account:
    since: str
    until: float | None
    charged: int = 0  # here, and what was known before
    stored: int = 0  # in the database
    reserved: int = 0  # by requests that run


class Ledger:
    """Accounts by key's name."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def account(self, name: str, period: Period, now: float) -> tuple[str, float | None]:
        """The period of a key's account, begun anew when the last one is over."""
        account = self._accounts.get(name)
        if account is None or (account.until is not None and now >= account.until) or _kind(account) != period:
            since, until = period_of(period, now)
            reserved = account.reserved if account is not None else 0
            account = self._accounts[name] = _Account(since, until, reserved=reserved)
        return account.since, account.until

    def spent(self, name: str) -> int:
        """What has been spent or is being spent in the current period."""
        account = self._accounts.get(name)
        return 0 if account is None else max(account.charged, account.stored) + account.reserved

    def reserve(self, name: str, nano: int) -> None:
        """A request runs that may cost so much; negative gives it back."""
        account = self._accounts.get(name)
        if account is not None:
            account.reserved = max(0, account.reserved + nano)

    def charge(self, name: str, nano: int) -> None:
        """A request has cost so much."""
        account = self._accounts.get(name)
        if account is not None:
            account.charged += nano

    def stored(self, name: str, since: str, nano: int, opening: bool = False) -> None:
        """What the database says of the period that began on `since`. `opening`: nothing has been charged here yet."""
        account = self._accounts.get(name)
        if account is not None and account.since == since:
            account.stored = nano
            if opening:
                account.charged = nano


def _kind(account: _Account) -> Period:
    if account.until is None:
        return "total"
    return "day" if account.until - _epoch(date.fromisoformat(account.since)) <= 86_400 else "month"
