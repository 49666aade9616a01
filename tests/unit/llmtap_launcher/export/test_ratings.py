"""Conditions on ratings."""

from __future__ import annotations

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export.ratings import where


@pytest.mark.parametrize(
    ("condition", "compare", "values"),
    [
        ("up", "r.value > :xv", {"xn": "thumb", "xv": 0.0}),
        ("down", "r.value < :xv", {"xn": "thumb", "xv": 0.0}),
        ("helpfulness >= 4", "r.value >= :xv", {"xn": "helpfulness", "xv": 4.0}),
        ("verdict=good", "r.string_value = :xv", {"xn": "verdict", "xv": "good"}),
        ("verdict!=bad one", "r.string_value != :xv", {"xn": "verdict", "xv": "bad one"}),
    ],
)
def test_conditions(condition: str, compare: str, values: dict[str, object]) -> None:
    sql, given = where(condition, "x")
    assert compare in sql and given == values


@pytest.mark.parametrize("condition", ["", "good", "verdict>good", ">=3"])
def test_what_is_none(condition: str) -> None:
    with pytest.raises(LlmtapError):
        where(condition, "x")
