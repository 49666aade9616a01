from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.wire import values


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (7, 7), (12.0, 12), (2**53, 2**53), (True, None), (-1, None), (2**60, None), (1.5, None), ("3", None), (None, None)],
)
def test_integer(value: Any, expected: int | None) -> None:
    assert values.integer(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (-1.5, -1.5), (1, 1), (float("nan"), None), (float("inf"), None), (True, None), ("1", None), (10**400, None)],
)
def test_number(value: Any, expected: float | None) -> None:
    assert values.number(value) == expected


def test_halves_of_a_surrogate_pair_meet_again() -> None:
    assert values.clean("a\ud83d" + "\ude80b") == "a🚀b"
    assert values.clean("a\ud83db") == "a\ufffdb"
    assert values.clean("\ude80\ud83d") == "\ufffd\ufffd"
    assert values.clean("plain") == "plain"
    assert values.clean("schön") == "schön"


@given(st.text(st.characters()))
def test_clean_text_can_be_stored(text: str) -> None:
    assert orjson.dumps(values.clean(text))


def test_string() -> None:
    assert values.string("x") == "x"
    assert values.string("\ud800") == "\ufffd"
    assert values.string(1) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, "b", 3, {"text": 4}], "ab"),
        (None, ""),
        ({"text": "a"}, ""),
    ],
)
def test_flatten(content: Any, text: str) -> None:
    assert values.flatten(content) == text


def test_arguments_as_text() -> None:
    assert values.json_text('{"a": 1}') == '{"a": 1}'
    assert values.json_text({"a": [1]}) == '{"a":[1]}'
    assert values.json_text(None) == ""
    assert values.json_text({"a": 10**30}) == ""


def test_extras_stay_small_and_storable() -> None:
    assert values.extra({"a": 1}) == {"a": 1}
    assert values.extra(None) is None
    assert values.extra("x" * 5000) is None
    assert values.extra([10**30]) is None
    assert values.extra("\ud800") is None
