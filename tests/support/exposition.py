"""The shape of an exposition: what of a scrape is the same on every server of a kind."""

from __future__ import annotations

from dataclasses import dataclass

from llmtap.metrics.exposition import Parsed


@dataclass(frozen=True)
class Shape:
    kind: str
    help: str
    labels: frozenset[str]
    buckets: tuple[str, ...]  # `le` of a histogram


def shapes(parsed: Parsed) -> dict[str, Shape]:
    """By family; `_created` series, which are made up beside each family, are left out."""
    return {
        name: Shape(
            family.kind,
            family.help,
            frozenset(key for _, labels, _ in family.samples for key, _ in labels) - {"le"},
            tuple(dict.fromkeys(dict(labels)["le"] for sample, labels, _ in family.samples if sample.endswith("_bucket"))),
        )
        for name, family in parsed.families.items()
        if not name.endswith("_created")
    }
