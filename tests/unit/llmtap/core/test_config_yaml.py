"""Reading YAML: plain data, the line of every key, and an error in words for everything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.config_yaml import MAX_NODES, read


def wrong(text: str) -> list[tuple[int | None, tuple[Any, ...], str]]:
    errors = read(text).errors
    assert errors
    return errors


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only a comment", None),
        ("---\n", None),
        ("a: 1", {"a": 1}),
        ("a: [007, 0x1f, 0o17, -5, +5, 1_000]", {"a": [7, 31, 15, -5, 5, 1000]}),
        ("a: [1.5, 1e3, -.5, 1., .inf]", {"a": [1.5, 1000.0, -0.5, 1.0, float("inf")]}),
        ("a: [true, False, TRUE]", {"a": [True, False, True]}),
        ("a: [~, null, Null, ]", {"a": [None, None, None]}),
        ("a: [yes, no, on, 1:30, 2026-01-31, =]", {"a": ["yes", "no", "on", "1:30", "2026-01-31", "="]}),
        ("a: ['1', \"true\", !!str 5]", {"a": ["1", "true", "5"]}),
        ("a: !!int '5'", {"a": 5}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ('{"a": {"b": [1, 2]}}', {"a": {"b": [1, 2]}}),
        ("a:\nb: {}", {"a": None, "b": {}}),
        ("x: &d {k: 1, l: 2}\ny:\n  <<: *d\n  l: 3", {"x": {"k": 1, "l": 2}, "y": {"k": 1, "l": 3}}),
        ("x: &d {k: 1}\nz: &e {k: 2, m: 2}\ny: {<<: [*d, *e]}", {"x": {"k": 1}, "z": {"k": 2, "m": 2}, "y": {"k": 1, "m": 2}}),
        ("a: &v 1\nb: *v", {"a": 1, "b": 1}),
        ("%YAML 1.1\n---\na: yes", {"a": True}),
    ],
)
def test_values(text: str, value: Any) -> None:
    document = read(text)
    assert document.errors == []
    assert document.tree == value


def test_not_a_number_stays_one() -> None:
    value = read("a: .nan").tree["a"]
    assert value != value


def test_lines() -> None:
    document = read("# head\na: 1\nb:\n  - x\n  - k: 1\n    l:\n      - 2\n\n      - 3\nc: {d: 1,\n  e: 2}\n")
    assert document.lines == {
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1): 5,
        ("b", 1, "k"): 5,
        ("b", 1, "l"): 6,
        ("b", 1, "l", 0): 7,
        ("b", 1, "l", 1): 9,
        ("c",): 10,
        ("c", "d"): 10,
        ("c", "e"): 11,
    }


def test_lines_of_merged_keys_are_where_they_stand() -> None:
    document = read("x: &d\n  k: 1\n  l: 2\ny:\n  l: 3\n  <<: *d\n")
    assert document.lines["y", "k"] == 2
    assert document.lines["y", "l"] == 5


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: 2\na: 3", 3, "is given twice (first in line 1)"),
        ("a:\n  - {k: 1, k: 2}", 2, "is given twice (first in line 2)"),
        ("a: 1\n1: 2", 2, "not text"),
        ("a: 1\n[x]: 2", 2, "not text"),
        ("a: 1\nb: [1, 2", 2, "not valid YAML"),
        ("a: 1\n\tb: 2", 2, "a tab"),
        ("a: x\n  b: 2", 2, "not valid YAML"),
        ("a: *nowhere", 1, "not valid YAML"),
        ("a: !!binary aGk=", 1, "tag"),
        ("a: 1\nb: !mine {x: 1}", 2, "tag"),
        ("a: !mine [1]", 1, "tag"),
        ("a: !mine x", 1, "tag"),
        ("a: !!int x", 1, "not a number"),
        ("a: 1\n---\nb: 2", 2, "not valid YAML"),
        ("a: &x [*x]", 1, "refers to itself"),
        ("a: &x {b: *x}", 1, "refers to itself"),
        ("a: {<<: 1}", 1, "not a mapping"),
        ("a: 1\nb: \x07", 2, "character YAML does not allow"),
        ("a: {b: ${env.X}}", 1, "put ${env.NAME} in quotes"),
    ],
)
def test_errors_have_their_line(text: str, line: int, says: str) -> None:
    (found,) = wrong(text)
    assert found[0] == line
    assert says in found[2]


def test_errors_do_not_quote_the_document() -> None:
    for text in ("k: *sk-secret-1", "k: !sk-secret-1 x", "k: !sk-secret-1!x y", "k: &a &sk-secret-1 x", "k: [sk-secret-1"):
        assert all("secret" not in message for _, _, message in wrong(text)), text


def test_a_reused_anchor_is_no_warning() -> None:
    assert read("a: &x 1\nb: &x 2\nc: *x").tree == {"a": 1, "b": 2, "c": 2}


def test_a_bomb_does_not_go_off() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for n in range(1, 9):
        text += f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n"
    (found,) = wrong(text)
    assert str(MAX_NODES) in found[2]


def test_depth_is_no_crash() -> None:
    wrong("[" * 5000)
    wrong("[" * 5000 + "]" * 5000)


@given(st.text(st.sampled_from(list("ab1 -:[]{}#&*!|>'\"%@`,?<=~.\n\t$")), max_size=60) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    document = read(text)
    assert document.errors or document.tree is None or isinstance(document.tree, str | int | float | bool | list | dict)
