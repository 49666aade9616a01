"""A Prometheus registry as plain data, for JSON endpoints and the in-process recorder."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry


def snapshot(registry: CollectorRegistry) -> dict[str, Any]:
    """Every sample of a registry as plain data: `{metric: {"type", "help", "samples": [{"name", "labels", "value"}]}}`."""
    return {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "samples": [
                {"name": s.name, "labels": dict(s.labels), "value": s.value}
                for s in family.samples
                if not s.name.endswith("_created")
            ],
        }
        for family in registry.collect()
    }
