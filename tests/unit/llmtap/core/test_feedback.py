"""The records of ratings and changes, and how metadata is changed."""

from __future__ import annotations

import orjson
import pytest

from llmtap.core.feedback import Patch, Rating, encode, merged


def test_records() -> None:
    rating = orjson.loads(encode(Rating("u", 5, "thumb", "user", 1.0, comment="fine")))
    assert rating == {
        "v": 1,
        "t": "rating",
        "uid": "u",
        "at_us": 5,
        "name": "thumb",
        "source": "user",
        "value": 1.0,
        "comment": "fine",
    }
    patch = orjson.loads(encode(Patch("u", 5, [], {"a": None})))
    assert patch == {"v": 1, "t": "patch", "uid": "u", "at_us": 5, "tags": [], "metadata": {"a": None}}


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1, "b": 2}, {"a": None, "c": 3}, {"b": 2, "c": 3}),
        ({"a": {"x": 1}}, {"a": {}}, {"a": {}}),
    ],
)
def test_metadata_changes_by_key(before: dict[str, object], change: dict[str, object], after: dict[str, object]) -> None:
    assert merged(before, change) == after
