"""Budgets: a key that has spent what it may is refused until its period is over.

Checked at the head of a request, charged at its end by the tokens that were counted: of a stream that broke off, those it
produced. While a request runs, what it may cost is set aside, so that many at once do not spend the same money. What was
spent before this process, or by others, comes from the capture database, which is read when the gateway starts and every few
seconds; it survives everything that captures survive.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from mitmproxy import http

from llmtap.core.config import Config
from llmtap.core.errors import ApiError, TooMany
from llmtap.exchange import Exchange
from llmtap.policy.ledger import NANO, Ledger
from llmtap.policy.pricing import RateBook, cost_of, own_rates
from llmtap.policy.windows import estimate_tokens

log = logging.getLogger("llmtap.budgets")
EVERY_S = 5.0
#: completion tokens set aside for a request that does not say how many it wants at most
USUAL_TOKENS = 256
_DAY_US = 86_400_000_000
_SPENT = "SELECT coalesce(sum(cost_nanousd), 0) FROM usage_daily WHERE key_name = ? AND day >= ?"


class BudgetUnknown(ApiError):
    """The database is there and cannot be read: what was spent is not known."""

    status, type, default_code = 503, "service_unavailable_error", "budget_unavailable"
    retry_after_s = 5


class Budgets:
    """Policy. `wall`: epoch seconds."""

    name = "budgets"

    def __init__(self, config: Config, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._ledger = Ledger()
        self._known = False  # what the database says
        self._task: asyncio.Task[None] | None = None
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Other budgets and prices from now on; what was spent stays spent."""
        self._database = config.db_path if config.capture.enabled else None
        self._periods = {key.name: key.budget_period for key in config.auth.keys if key.budget_usd is not None}
        self.book = book_of(config)
        now = self._wall()
        for name, period in self._periods.items():
            self._ledger.account(name, period, now)

    # ---- what is known

    def start(self) -> None:
        """Read what was spent before, then again and again. Call on the running loop."""
        self._take(self._read(self._asked()), opening=True)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow(), name="llmtap budgets")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            self._take(await asyncio.to_thread(self._read, self._asked()))

    def _asked(self) -> dict[str, str]:
        """Each key and the first day of its period."""
        now = self._wall()
        return {name: self._ledger.account(name, period, now)[0] for name, period in self._periods.items()}

    def _read(self, asked: Mapping[str, str]) -> dict[tuple[str, str], int] | None:
        """Spent by (key, first day), from the database; None when it cannot be read."""
        path = self._database
        if path is None or not path.exists():
            return {}
        try:
            with closing(_connect(path)) as db:
                if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'usage_daily'").fetchone() is None:
                    return {}  # the writer has only begun
                return {(name, since): db.execute(_SPENT, (name, since)).fetchone()[0] for name, since in asked.items()}
        except sqlite3.Error as error:
            log.error("llmtap: budgets: %s cannot be read: %s", path, error)
            return None

    def _take(self, found: Mapping[tuple[str, str], int] | None, opening: bool = False) -> None:
        if found is None:
            return
        for (name, since), nano in found.items():
            self._ledger.stored(name, since, nano, opening and not self._known)
        self._known = True

    # ---- steps

    def on_requestheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        client = ex.client
        if client is None or client.budget_usd is None:
            return
        if not self._known:
            raise BudgetUnknown("what this API key has spent is not known at the moment; try again later")
        now = self._wall()
        _, until = self._ledger.account(client.name, client.budget_period, now)
        if self._ledger.spent(client.name) >= client.budget_usd * NANO:
            wait = 86_400 if until is None else max(1, round(until - now))
            what = "" if client.budget_period == "total" else f" of this {client.budget_period}"
            raise TooMany(f"the budget of this API key{what} is spent", code="budget_exceeded", retry_after_s=wait)

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        client, parsed = ex.client, ex.parsed
        if client is None or client.budget_usd is None or parsed is None:
            return
        rate = self.book.rate(None, ex.model, None, ex.started_us // _DAY_US)
        if rate is None:
            return
        body = len(ex.body or b"")
        usual = USUAL_TOKENS if ex.endpoint.generates else 0
        completion = estimate_tokens(0, parsed.max_tokens, parsed.n, usual)
        ex.set_aside = cost_of(rate, body // 4, completion, 0) or 0
        self._ledger.reserve(client.name, ex.set_aside)

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.set_aside and ex.client is not None:
            self._ledger.reserve(ex.client.name, -ex.set_aside)
            ex.set_aside = 0

    def charge(self, ex: Exchange, nano: int) -> None:
        """A request has cost so much."""
        client = ex.client
        if client is not None and client.budget_usd is not None:
            self._ledger.account(client.name, client.budget_period, self._wall())
            self._ledger.charge(client.name, nano)


class Costs:
    """Observer: what a request has cost (`Exchange.cost_nano`), when its tokens are known. It stands behind the tee.
    `budgets`: where it is charged, None when nowhere."""

    name = "costs"

    def __init__(self, book: RateBook, budgets: Budgets | None = None) -> None:
        self._book = book
        self._budgets = budgets

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        summary = ex.summary
        if summary is None or ex.forwarded is None or ex.cache in ("hit", "shared"):
            return
        usage = summary.usage
        if usage.prompt_tokens is None and usage.completion_tokens is None:
            return
        rate = self._book.rate(summary.model, ex.model, ex.backend, ex.started_us // _DAY_US)
        if rate is None:
            return
        nano = cost_of(rate, usage.prompt_tokens or 0, usage.completion_tokens or 0, usage.cached_tokens or 0)
        if nano:
            ex.cost_nano = nano
            if self._budgets is not None:
                self._budgets.charge(ex, nano)


def book_of(config: Config) -> RateBook:
    """The rates of a configuration."""
    return RateBook(own_rates(config.prices), {b.name: b.url for b in config.backends if b.url is not None})


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=1.0)
    with suppress(sqlite3.Error):
        db.execute("PRAGMA query_only = 1")
    return db
