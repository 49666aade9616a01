"""Metric families kept as plain numbers and handed to Prometheus when it asks.

`prometheus_client`'s own metrics cost 1.5 us a label lookup and take a lock for each number: several times the budget of a
request. Here a family is a dictionary from label values to small objects that whoever counts keeps and adds to; naming,
sorting and formatting are done at a scrape. `Families` is a `Collector` for any `CollectorRegistry`.

A set of labels appears with its first count. `_created` series follow prometheus_client's own switch, the environment
variable `PROMETHEUS_DISABLE_CREATED_SERIES`. Nothing is locked: one thread writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmtap.metrics.buckets import Bounds, Histo, edges

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]


class Number:
    """One number of a counter or gauge: add to `value`."""

    __slots__ = ("born", "value")

    def __init__(self) -> None:
        self.born = time.time()
        self.value: float = 0

    def inc(self, by: float = 1) -> None:
        """Add to it."""
        self.value += by

    def set(self, value: float) -> None:
        """For gauges."""
        self.value = value


class Family:
    """Name, help and label names of one metric. `name` is without the `_total` of counters."""

    def __init__(self, kind: Kind, name: str, text: str, labels: Labels) -> None:
        self.kind, self.name, self.help, self.label_names = kind, name, text, labels

    def empty(self) -> Metric:
        """The family without samples."""
        return Metric(self.name, self.help, self.kind)

    def export(self, created: bool) -> Metric:
        """The family with its samples of now. `created`: with the time each set of labels began."""
        raise NotImplementedError


class Counter(Family):
    """Numbers by label values. With `kind` "gauge" they may be set, and are told also while they are 0."""

    def __init__(self, name: str, text: str, labels: Labels = (), kind: Literal["counter", "gauge"] = "counter") -> None:
        super().__init__(kind, name, text, labels)
        self._values: dict[Labels, Number] = {}
        self._read: Callable[[], Iterable[tuple[Labels, float]]] | None = None
        if not labels:
            self.at(())

    def at(self, labels: Labels) -> Number:
        """The number under these label values, to keep and add to."""
        found = self._values.get(labels)
        if found is None:
            found = self._values[labels] = Number()
        return found

    def labels(self, *values: str) -> Number:
        """The same, as prometheus_client has it."""
        return self.at(values)

    def inc(self, by: float = 1) -> None:
        """Add to the one number of a family without labels."""
        self.at(()).value += by

    def set_function(self, value: Callable[[], float]) -> None:
        """Ask for the one number of a family without labels at every scrape, instead of keeping it."""
        self._read = lambda: [((), value())]

    def read_from(self, source: Callable[[], Iterable[tuple[Labels, float]]]) -> None:
        """Ask `source` for label values and numbers at every scrape, instead of keeping them."""
        self._read = source

    def export(self, created: bool) -> Metric:
        metric = self.empty()
        counts = self.kind == "counter"
        name = f"{self.name}_total" if counts else self.name
        if self._read is not None:
            for labels, value in self._read():
                metric.add_sample(name, dict(zip(self.label_names, labels, strict=True)), value)
            return metric
        for labels, number in self._values.items():
            if counts and labels and not number.value:
                continue
            named = dict(zip(self.label_names, labels, strict=True))
            metric.add_sample(name, named, number.value)
            if created and counts:
                metric.add_sample(f"{self.name}_created", named, number.born)
        return metric


class Histogram(Family):
    """A `Histo` by label values."""

    def __init__(self, name: str, text: str, bounds: Bounds, labels: Labels = ()) -> None:
        super().__init__("histogram", name, text, labels)
        self.bounds = bounds
        self._values: dict[Labels, Histo] = {}

    def at(self, labels: Labels) -> Histo:
        """The counts under these label values, to keep and observe into."""
        found = self._values.get(labels)
        if found is None:
            found = self._values[labels] = Histo(self.bounds)
        return found

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        self.at(labels).observe(value)

    def export(self, created: bool) -> Metric:
        metric = self.empty()
        les = edges(self.bounds)
        for labels, histo in self._values.items():
            if not any(histo.counts):
                continue
            named = dict(zip(self.label_names, labels, strict=True))
            cumulative = 0
            for le, n in zip(les, histo.counts, strict=True):
                cumulative += n
                metric.add_sample(f"{self.name}_bucket", {**named, "le": le}, cumulative)
            metric.add_sample(f"{self.name}_count", named, cumulative)
            metric.add_sample(f"{self.name}_sum", named, histo.total)
            if created:
                metric.add_sample(f"{self.name}_created", named, histo.born)
        return metric


class Families(Collector):
    """A number of families as one collector."""

    def __init__(self) -> None:
        self._all: list[Family] = []
        self._created = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "t")

    def add[F: Family](self, family: F) -> F:
        """Take a family in; gives it back."""
        self._all.append(family)
        return family

    def __iter__(self) -> Iterator[Family]:
        return iter(self._all)

    def describe(self) -> Iterable[Metric]:
        """The families without samples: what a registry checks names with."""
        return [family.empty() for family in self._all]

    def collect(self) -> Iterator[Metric]:
        """The families of now."""
        for family in self._all:
            yield family.export(self._created)
