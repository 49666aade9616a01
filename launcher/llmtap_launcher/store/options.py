"""What the configuration tells the writer: prices, how long things are kept, whether finished spool files are archived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmtap.core.config import Config
from llmtap.policy.pricing import Rate, own_rates


@dataclass(frozen=True, slots=True)
class Retention:
    """Ages in days from which things go, and the size from which the oldest exchanges do. None: never."""

    timings_days: float | None = None
    bodies_days: float | None = None
    exchanges_days: float | None = None
    max_bytes: int | None = None

    @property
    def nothing(self) -> bool:
        """Whether all is kept."""
        return self == Retention()


@dataclass(frozen=True, slots=True)
class Options:
    """The defaults keep everything and know no price: what a writer does that was told only a folder."""

    rates: tuple[Rate, ...] = ()
    urls: Mapping[str, str] = field(default_factory=dict)
    retention: Retention = Retention()
    archive_days: float = 0


def from_config(config: Config) -> Options:
    """The options of a configuration; 0 means for ever there."""
    store = config.store
    retention = Retention(
        store.retain_timings_days or None,
        store.retain_bodies_days or None,
        store.retain_days or None,
        round(store.max_gb * 1e9) or None,
    )
    urls = {backend.name: backend.url for backend in config.backends if backend.url is not None}
    return Options(own_rates(config.prices), urls, retention, store.archive_days)
