"""Metric families kept as plain numbers and handed to Prometheus when it asks.

`prometheus_client`'s own metrics cost 1.5 us a label lookup and take a lock for each number: several times the budget of a
request. Here a family is a dictionary from label values to small objects that whoever counts keeps and adds to; naming,
sorting and formatting are done at a scrape. `Families` is a `Collector` for any `CollectorRegistry`.

A set of labels appears with its first count, in families made with `zeros` when it is asked for first. `_created` series
follow prometheus_client's own switch, the environment variable `PROMETHEUS_DISABLE_CREATED_SERIES`. Nothing is locked: one
thread writes.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmtap.metrics.buckets import Bounds, Histo, edges

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]
Together = Literal["sum", "max"]


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

    def dump(self) -> dict[str, Any]:
        """What it holds, as plain data: for `absorb`, in this process or another."""
        raise NotImplementedError

    def absorb(self, dumped: dict[str, Any], alive: bool) -> None:
        """Add what another one of the same name and labels held. `alive`: its process runs, so its gauges count."""
        raise NotImplementedError

    def shell(self) -> dict[str, Any]:
        """Name, kind and labels, as `dump` begins."""
        return {"kind": self.kind, "name": self.name, "help": self.help, "labels": self.label_names}


class Counter(Family):
    """Numbers by label values. With `kind` "gauge" they may be set, and are told also while they are 0.

    `together`: how a gauge of several processes is put together to one number.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Labels = (),
        kind: Literal["counter", "gauge"] = "counter",
        *,
        zeros: bool = False,
        together: Together = "sum",
    ) -> None:
        super().__init__(kind, name, text, labels)
        self.zeros = zeros or kind == "gauge" or not labels
        self.together = together
        self._values: dict[Labels, Number] = {}
        self._read: Callable[[], Iterable[tuple[Labels, float]]] | None = None
        if not labels and kind == "counter":
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

    def remove(self, *values: str) -> None:
        """Tell no more of it."""
        self._values.pop(values, None)

    def inc(self, by: float = 1) -> None:
        """Add to the one number of a family without labels."""
        self.at(()).value += by

    def set_function(self, value: Callable[[], float]) -> None:
        """Ask for the one number of a family without labels at every scrape, instead of keeping it."""
        self._read = lambda: [((), value())]

    def read_from(self, source: Callable[[], Iterable[tuple[Labels, float]]]) -> None:
        """Ask `source` for label values and numbers at every scrape, instead of keeping them."""
        self._read = source

    def dump(self) -> dict[str, Any]:
        if self._read is not None:
            rows = [(labels, value, 0.0) for labels, value in self._read()]
        else:
            rows = [(labels, number.value, number.born) for labels, number in self._values.items()]
        return self.shell() | {"zeros": self.zeros, "together": self.together, "rows": rows}

    def absorb(self, dumped: dict[str, Any], alive: bool) -> None:
        gauge = self.kind == "gauge"
        if gauge and not alive:
            return
        for labels, value, born in dumped["rows"]:
            at = tuple(labels)
            new = at not in self._values
            number = self.at(at)
            number.value = max(number.value, value) if gauge and self.together == "max" and not new else number.value + value
            number.born = born if new else min(number.born, born)

    def export(self, created: bool) -> Metric:
        metric = self.empty()
        counts = self.kind == "counter"
        name = f"{self.name}_total" if counts else self.name
        if self._read is not None:
            for labels, value in self._read():
                metric.add_sample(name, dict(zip(self.label_names, labels, strict=True)), value)
            return metric
        for labels, number in self._values.items():
            if not number.value and not self.zeros:
                continue
            named = dict(zip(self.label_names, labels, strict=True))
            metric.add_sample(name, named, number.value)
            if created and counts:
                metric.add_sample(f"{self.name}_created", named, number.born)
        return metric


class Histogram(Family):
    """A `Histo` by label values."""

    def __init__(self, name: str, text: str, bounds: Bounds, labels: Labels = (), *, zeros: bool = False) -> None:
        super().__init__("histogram", name, text, labels)
        self.zeros = zeros
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

    def dump(self) -> dict[str, Any]:
        rows = [(labels, histo.counts.copy(), histo.total, histo.born) for labels, histo in self._values.items()]
        return self.shell() | {"zeros": self.zeros, "bounds": self.bounds, "rows": rows}

    def absorb(self, dumped: dict[str, Any], alive: bool) -> None:
        # buckets of a process that runs with another configuration: what was within a bound stays within it
        places = [bisect_left(self.bounds, bound) for bound in dumped["bounds"]] + [len(self.bounds)]
        for labels, counts, total, born in dumped["rows"]:
            at = tuple(labels)
            new = at not in self._values
            histo = self.at(at)
            for place, n in zip(places, counts, strict=True):
                histo.counts[place] += n
            histo.total += total
            histo.born = born if new else min(histo.born, born)

    def export(self, created: bool) -> Metric:
        metric = self.empty()
        les = edges(self.bounds)
        for labels, histo in self._values.items():
            if not self.zeros and not any(histo.counts):
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
        self._before: list[Callable[[], None]] = []
        self.created = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "t")

    def add[F: Family](self, family: F) -> F:
        """Take a family in; gives it back. Raises ValueError for a name that is taken: a page with it twice is read by nobody."""
        if any(known.name == family.name for known in self._all):
            raise ValueError(f"the metric {family.name} is declared twice")
        self._all.append(family)
        return family

    def before(self, call: Callable[[], None]) -> None:
        """Call this before every collection."""
        self._before.append(call)

    def prepare(self) -> None:
        """Do what has to be done before a collection."""
        for call in self._before:
            call()

    def __iter__(self) -> Iterator[Family]:
        return iter(self._all)

    def dump(self) -> list[dict[str, Any]]:
        """Every family as plain data."""
        self.prepare()
        return [family.dump() for family in self._all]

    def dump_shells(self) -> list[dict[str, Any]]:
        """Every family as plain data, without numbers."""
        return [family.dump() | {"rows": []} for family in self._all]

    def absorb(self, dumped: list[dict[str, Any]], alive: bool = True) -> None:
        """Add what another process dumped; families that are new here are made. Raises KeyError, TypeError or ValueError for
        what no dump is."""
        known = {family.name: family for family in self._all}
        for one in dumped:
            family = known.get(one["name"])
            if family is None:
                family = known[one["name"]] = self.add(_made(one))
            if family.kind == one["kind"] and list(family.label_names) == list(one["labels"]):
                family.absorb(one, alive)

    def describe(self) -> Iterable[Metric]:
        """The families without samples: what a registry checks names with."""
        return [family.empty() for family in self._all]

    def collect(self) -> Iterator[Metric]:
        """The families of now."""
        self.prepare()
        for family in self._all:
            yield family.export(self.created)


def _made(dumped: dict[str, Any]) -> Family:
    name, text, labels = dumped["name"], dumped["help"], tuple(dumped["labels"])
    if dumped["kind"] == "histogram":
        return Histogram(name, text, tuple(dumped["bounds"]), labels, zeros=dumped["zeros"])
    return Counter(name, text, labels, dumped["kind"], zeros=dumped["zeros"], together=dumped["together"])
