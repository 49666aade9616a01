"""Our text is prometheus_client's text."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from llmtap.core.snapshot import snapshot
from llmtap.metrics import families as f
from llmtap.metrics.rendering import accepts_openmetrics, plain, text


@pytest.fixture
def families() -> f.Families:
    made = f.Families()
    made.add(f.Counter("c", 'Help "quoted" \\ and\nmore.', ("a", "b"))).labels('x"\\', "y\nz").inc(2)
    made.add(f.Counter("plain", "Without labels."))
    gauge = made.add(f.Counter("g", "G.", ("a",), "gauge"))
    for n, value in enumerate((0.0, 1e6, 1e16, 1.5e-7, float("inf"), float("-inf"))):
        gauge.labels(str(n)).set(value)
    histogram = made.add(f.Histogram("h", "H.", (0.5, 1.0, 2560.0), ("a",)))
    for value in (0.2, 0.7, 1e9):
        histogram.observe(value, "x")
    histogram.at(("never",))
    made.add(f.Histogram("bare", "B.", (1.0,))).observe(0.5)
    made.add(f.Histogram("empty", "E.", (1.0,), ("a",), zeros=True)).at(("x",))
    made.add(f.Counter("unused", "U.", ("a",)))
    return made


@pytest.fixture
def registry(families: f.Families) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(families)
    return registry


def read(parse: object, exposition: bytes) -> dict[str, object]:
    assert callable(parse)
    return {
        m.name: (m.type, m.documentation, sorted((s.name, sorted(s.labels.items()), s.value) for s in m.samples))
        for m in parse(exposition.decode())
    }


@pytest.mark.parametrize("created", [True, False])
def test_the_text_format(families: f.Families, registry: CollectorRegistry, created: bool) -> None:
    families.created = created
    ours = text(families.dump(), created=created)
    assert read(text_string_to_metric_families, ours) == read(text_string_to_metric_families, generate_latest(registry))
    assert (b"_created" in ours) is created


def test_openmetrics(families: f.Families, registry: CollectorRegistry) -> None:
    ours = text(families.dump(), openmetrics=True)
    assert read(parse_openmetrics, ours) == read(parse_openmetrics, generate_openmetrics(registry))
    assert ours.endswith(b"# EOF\n")


def test_plain_data(families: f.Families, registry: CollectorRegistry) -> None:
    assert plain(families.dump()) == snapshot(registry)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
        ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;version=1.0.0;q=0.5", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nonsense", False),
        (";;,,;q=", False),
    ],
)
def test_what_a_scraper_asks_for(accept: str, openmetrics: bool) -> None:
    assert accepts_openmetrics(accept) is openmetrics
