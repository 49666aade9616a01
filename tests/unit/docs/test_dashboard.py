"""The dashboard asks for metrics that exist, by labels they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmtap.metrics.measures import Measures

DOCS = Path(__file__).parents[3] / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "llmtap.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported() -> dict[str, set[str]]:
    """Name of each sample -> its labels."""
    out: dict[str, set[str]] = {}
    for family in Measures(2048).families:
        labels = set(family.label_names)
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}[family.kind]
        out |= {family.name + end: labels | ({"le"} if end == "_bucket" else set()) for end in ends}
    return out


@pytest.mark.parametrize("query", QUERIES)
def test_queries_ask_for_what_is_there(query: str) -> None:
    found = exported()
    names = re.findall(r"llmtap_\w+", query)
    assert names
    for name in names:
        assert name in found, name
    asked = set(re.findall(r"(\w+)=~?\"", query)) | {
        label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")
    }
    assert asked <= found[names[0]]


def test_panels_are_apart() -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({p["id"] for p in DASHBOARD["panels"]})
    assert len({p["title"] for p in DASHBOARD["panels"]}) == len(places)
