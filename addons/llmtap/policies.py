"""The protections of one configuration: those that are on, where in the order of steps they stand, and what outlives a reload.

What counts (limits) or knows who is in (keys) is one object from the start of the process to its end: another configuration is
told to it once it is in force.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from llmtap.auth import Auth
from llmtap.batching import Batching
from llmtap.budgets import Budgets, Costs, book_of
from llmtap.cache import Cache, CacheFill, Lookup
from llmtap.core import config as c
from llmtap.core.redis import SharedRedis
from llmtap.cors import Cors
from llmtap.errands import Errands
from llmtap.filters import Filters
from llmtap.lane import Lane
from llmtap.limits import Limits
from llmtap.metrics import GatewayMetrics
from llmtap.policy.backends import Backends
from llmtap.single_flight import FlightFill, SingleFlight


class Policies:
    """`before`: those of the configuration that was in force. Raises ConfigError."""

    def __init__(
        self,
        config: c.Config,
        metrics: GatewayMetrics,
        backends: Backends,
        errands: Errands | None = None,
        before: Policies | None = None,
    ) -> None:
        self._config = config
        self._backends = backends
        self._redis: dict[str, SharedRedis] = before._redis if before is not None else {}  # by URL
        self.cors = Cors(config.server.cors_origins) if config.server.cors_origins else None
        self.auth: Auth | None = None
        if config.auth.enabled:
            self.auth = before.auth if before is not None and before.auth is not None else Auth(config.auth)
        self.filters = Filters(config.filters) if config.filters else None
        self.budgets: Budgets | None = None
        if config.auth.enabled and any(key.budget_usd is not None for key in config.auth.keys):
            self.budgets = before.budgets if before is not None and before.budgets is not None else Budgets(config)
        self._dropped = before.budgets if before is not None and self.budgets is None else None
        self.limits: Limits | None = None
        limits = config.rate_limit
        if limits.enabled:
            if before is not None and before.limits is not None and before._config.rate_limit.storage == limits.storage:
                self.limits = before.limits
            else:
                self.limits = Limits(limits, self._shared(limits.storage), metrics.limit_storage_errors.inc)

        self.cache: Cache | None = None
        cache = config.cache
        if cache.enabled:
            if before is not None and before.cache is not None and before._config.cache.storage == cache.storage:
                self.cache = before.cache
            else:
                lookups = {result: metrics.cache_lookups.labels(result) for result in get_args(Lookup)}
                self.cache = Cache(cache, self._shared(cache.storage), lambda result: lookups[result].inc())

        self.single_flight: SingleFlight | None = None
        if config.single_flight.enabled:
            known = before.single_flight if before is not None else None
            self.single_flight = known or SingleFlight(config.single_flight, metrics.cache_lookups.labels("shared").inc)

        self.batching: Batching | None = None
        if config.batching.enabled and errands is not None:
            self.batching = Batching(config.batching, errands.ask, _observing(metrics))
            self._errands = errands

    def carried_by(self, lane: Lane | None) -> None:
        """Who carries out requests of our own; None: nobody (a stock mode)."""
        if self.batching is not None:
            self._errands.lane = lane
            if lane is None:
                self.batching.ask = None

    @property
    def before_routing(self) -> list[Any]:
        """Steps between the parsing of a body and the choice of a backend."""
        limited = any(key.models is not None or key.max_concurrency is not None for key in self._config.auth.keys)
        return [addon for addon in (self.auth if limited else None, self.filters) if addon is not None]

    @property
    def after_routing(self) -> list[Any]:
        """Steps between that choice and the way to the backend."""
        return [
            addon for addon in (self.budgets, self.limits, self.cache, self.single_flight, self.batching) if addon is not None
        ]

    @property
    def after_tee(self) -> list[Any]:
        """Observers that want to see a reply before anything is withheld of it."""
        found: list[Any] = []
        if self.budgets is not None or self._config.metrics.enabled:
            found.append(Costs(book_of(self._config), self.budgets))
        if self.cache is not None:
            found.append(CacheFill(self.cache, self._config.cache.replay == "original"))
        if self.single_flight is not None:
            found.append(FlightFill())
        return found

    def start(self) -> None:
        """This configuration is in force now."""
        if self.auth is not None:
            self.auth.reload(self._config.auth)
        if self._dropped is not None:
            self._dropped.stop()
            self._dropped = None
        if self.budgets is not None:
            self.budgets.reload(self._config)
            self.budgets.start()
        if self.limits is not None:
            self.limits.reload(self._config.rate_limit)
        if self.cache is not None:
            self.cache.reload(self._config.cache)
            self.cache.aliases = self._backends.aliases
        if self.single_flight is not None:
            self.single_flight.reload(self._config.single_flight)

    def client_left(self, client: str) -> None:
        """The connection of this id is gone."""
        if self.single_flight is not None:
            self.single_flight.client_left(client)
        if self.batching is not None:
            self.batching.client_left(client)

    def stop(self) -> None:
        """The end of the process."""
        if self.budgets is not None:
            self.budgets.stop()
        for redis in self._redis.values():
            redis.close()

    def _shared(self, url: str) -> SharedRedis | None:
        """The Redis at this URL, one for all who name it; None for memory://."""
        if url == "memory://":
            return None
        return self._redis.get(url) or self._redis.setdefault(url, SharedRedis(url))


def _observing(metrics: GatewayMetrics) -> Callable[[str | None, int, list[float]], None]:
    def observe(model: str | None, size: int, waits: list[float]) -> None:
        label = metrics.model_label(model)
        metrics.batch_size.observe(size, label)
        for wait in waits:
            metrics.batch_wait.observe(wait, label)

    return observe
