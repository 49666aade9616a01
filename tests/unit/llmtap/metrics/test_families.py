"""Families give what prometheus_client's own metrics would give."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from llmtap.metrics import families as f


def without_created(text: bytes) -> list[str]:
    return [line for line in text.decode().splitlines() if "_created" not in line]


@pytest.mark.parametrize("generate", [generate_latest, generate_openmetrics])
def test_the_exposition_is_that_of_prometheus_client(generate: object) -> None:
    theirs, registry = CollectorRegistry(), CollectorRegistry()
    Counter("c", "C.", ["a", "b"], registry=theirs).labels("x", 'y"\n').inc(2)
    Counter("plain", "P.", registry=theirs).inc()
    Gauge("g", "G.", registry=theirs).set(1.5)
    Histogram("h", "H.", ["a"], buckets=(0.5, 1), registry=theirs).labels("x").observe(0.7)
    ours = f.Families()
    ours.add(f.Counter("c", "C.", ("a", "b"))).labels("x", 'y"\n').inc(2)
    ours.add(f.Counter("plain", "P.")).inc()
    ours.add(f.Counter("g", "G.", (), "gauge")).labels().set(1.5)
    ours.add(f.Histogram("h", "H.", (0.5, 1.0), ("a",))).observe(0.7, "x")
    registry.register(ours)
    assert callable(generate)
    assert without_created(generate(registry)) == without_created(generate(theirs))
    assert generate(registry).count(b"_created{") == generate(theirs).count(b"_created{") > 0


def test_created_series_can_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_DISABLE_CREATED_SERIES", "true")
    families = f.Families()
    families.add(f.Counter("c", "C.")).inc()
    assert [s.name for m in families.collect() for s in m.samples] == ["c_total"]


def test_labels_appear_with_their_first_count() -> None:
    counter, gauge = f.Counter("c", "C.", ("a",)), f.Counter("g", "G.", ("a",), "gauge")
    histogram = f.Histogram("h", "H.", (1.0,), ("a",))
    number = counter.at(("x",))
    gauge.at(("x",))
    histo = histogram.at(("x",))
    assert not counter.export(False).samples and not histogram.export(False).samples
    assert [s.value for s in gauge.export(False).samples] == [0]
    number.value += 3
    histo.observe(5)
    assert [s.value for s in counter.export(False).samples] == [3]
    assert [(s.labels.get("le"), s.value) for s in histogram.export(False).samples] == [
        ("1.0", 0),
        ("+Inf", 1),
        (None, 1),
        (None, 5),
    ]


def test_values_may_be_asked_for() -> None:
    gauge = f.Counter("g", "G.", ("a",), "gauge")
    gauge.read_from(lambda: [(("x",), 1), (("y",), 2)])
    assert {s.labels["a"]: s.value for s in gauge.export(True).samples} == {"x": 1, "y": 2}
    plain = f.Counter("p", "P.", (), "gauge")
    plain.set_function(lambda: 7)
    assert [s.value for s in plain.export(True).samples] == [7]


def test_a_registry_knows_the_names() -> None:
    registry = CollectorRegistry()
    families = f.Families()
    families.add(f.Counter("c", "C."))
    registry.register(families)
    with pytest.raises(ValueError, match="Duplicated"):
        Counter("c", "C.", registry=registry)


def test_what_is_removed_is_told_no_more() -> None:
    gauge = f.Counter("g", "G.", ("a",), "gauge")
    gauge.labels("x").set(1)
    gauge.labels("y").set(0)
    gauge.remove("x")
    gauge.remove("never was")
    assert [s.labels for s in gauge.export(False).samples] == [{"a": "y"}]


def test_a_name_that_is_taken() -> None:
    families = f.Families()
    families.add(f.Counter("c", "C."))
    with pytest.raises(ValueError, match="c is declared twice"):
        families.add(f.Histogram("c", "C.", (1.0,)))
