"""Sides of a comparison as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llmtap_launcher.analysis.sides import side
from llmtap_launcher.selection import Selection, SelectionError

NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)
BASE = Selection(since="2026-10-01T00:00:00.000Z", keys=("ci",), tags=("x",))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Qwen/Qwen3-8B", {"models": ("Qwen/Qwen3-8B",)}),
        ("qwen3:8b", {"models": ("qwen3:8b",)}),  # Ollama's names have colons
        ("model:key:x", {"models": ("key:x",)}),
        ("backend:a", {"backends": ("a",)}),
        ("key:team", {"keys": ("team",)}),
        ("key:", {"keys": ("",)}),
        ("tag:canary", {"tags": ("x", "canary")}),
        ("2026-11-01..2026-11-08", {"since": "2026-11-01T00:00:00.000Z", "until": "2026-11-08T00:00:00.000Z"}),
        ("7d..", {"since": "2026-11-14T09:00:00.000Z"}),
        ("..1d", {"until": "2026-11-20T09:00:00.000Z"}),
    ],
)
def test_sides(text: str, wanted: dict[str, object]) -> None:
    found = side(text, BASE, NOW)
    assert found.name == text
    for name in ("since", "until", "models", "keys", "backends", "tags"):
        assert getattr(found.selection, name) == wanted.get(name, getattr(BASE, name))


@pytest.mark.parametrize("text", ["", " ", "..", "1d..7d", "2026-11-08..2026-11-01", "soon..", "..2026-13-01"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(SelectionError) as caught:
        side(text, Selection(), NOW)
    assert "\n" not in str(caught.value)
