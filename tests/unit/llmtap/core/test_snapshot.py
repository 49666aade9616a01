"""A registry as plain data."""

from __future__ import annotations

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram

from llmtap.core.snapshot import snapshot


def test_counters_and_histograms_with_their_labels() -> None:
    registry = CollectorRegistry()
    Counter("things", "Things.", ["kind"], registry=registry).labels("a").inc(2)
    Histogram("waits_seconds", "Waits.", buckets=(1.0, 2.0), registry=registry).observe(1.5)
    plain = orjson.loads(orjson.dumps(snapshot(registry)))
    assert plain["things"]["type"] == "counter"
    assert plain["things"]["samples"] == [{"name": "things_total", "labels": {"kind": "a"}, "value": 2.0}]
    buckets = {s["labels"]["le"]: s["value"] for s in plain["waits_seconds"]["samples"] if s["name"].endswith("_bucket")}
    assert buckets == {"1.0": 0.0, "2.0": 1.0, "+Inf": 1.0}
