"""Comparisons: counts of each side, differences that are there, the same questions found."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.record import Choice
from llmtap_launcher.analysis.comparison import compare
from llmtap_launcher.analysis.sides import side
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.database import connect_ro
from support.captures import WEATHER_CALLS, Captures


def metric(made: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [row for row in made["metrics"] if row["metric"] == name]
    return row


def test_two_models(conn: sqlite3.Connection, rows: list[dict[str, Any]]) -> None:
    a, b = (side(name, Selection()) for name in ("Qwen/Qwen3-8B", "mistral-7b"))
    made = compare(conn, a, b)
    good = {s.name: [r for r in rows if r["model"] == s.name and r["outcome"] == "ok"] for s in (a, b)}
    for which, s in (("a", a), ("b", b)):
        assert made[which]["requests"] == sum(row["model"] == s.name and row["backend"] is not None for row in rows)
        assert made[which]["sampled"] == len(good[s.name])
    gaps = metric(made, "between tokens, median")
    for which, s in (("a", a), ("b", b)):
        assert gaps[which] == pytest.approx(
            statistics.median(r["itl_p50_ms"] for r in good[s.name] if r["itl_p50_ms"] is not None)
        )
    assert gaps["differs"]
    assert gaps["delta"] == pytest.approx(gaps["b"] - gaps["a"])
    assert gaps["low"] <= gaps["delta"] <= gaps["high"]
    assert gaps["change"] == pytest.approx(gaps["delta"] / gaps["a"])
    # both have their prompts from the same distribution
    assert not metric(made, "tokens in, mean")["differs"]
    assert metric(made, "cost of 1,000 requests")["b"] is None  # no price
    assert compare(conn, a, b) == made
    assert compare(conn, a, b, seed=1)["metrics"] != made["metrics"]


def test_a_sample_of_many(conn: sqlite3.Connection) -> None:
    a, b = side("backend:a", Selection()), side("backend:b", Selection())
    whole, part = compare(conn, a, b, pairs=0), compare(conn, a, b, pairs=0, sample=300)
    assert 200 < part["a"]["sampled"] < 400 < whole["a"]["sampled"]
    for name in ("requests", "failed", "cost_usd"):
        assert part["a"][name] == whole["a"][name]
    assert metric(part, "failed")["a"] == metric(whole, "failed")["a"]
    assert metric(part, "first token, median")["a"] == pytest.approx(metric(whole, "first token, median")["a"], rel=0.2)


def test_a_side_without_exchanges(conn: sqlite3.Connection) -> None:
    made = compare(conn, side("nothing", Selection()), side("backend:a", Selection()))
    assert made["a"]["requests"] == 0
    assert all(row["delta"] is None and not row["differs"] for row in made["metrics"])
    assert metric(made, "whole request, median")["b"] is not None
    assert made["pairs"] == {"count": 0, "equal_replies": 0, "latest": []}


@pytest.fixture
def twice(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with Captures(tmp_path) as captures:

        def ask(question: str, reply: str | Choice, model: str, **more: Any) -> None:
            captures.exchange([{"role": "user", "content": question}], reply, asked=more, served=model)

        ask("capital of France?", "Paris.", "one")
        ask("capital of France?", "Paris.", "two")
        ask("capital of Peru?", "Lima", "one")
        ask("capital of Peru?", "It is Lima.", "two")
        ask("capital of Peru?", "Lima!", "two")
        ask("only one was asked", "yes", "one")
        tool = {"type": "function", "function": {"name": "get_weather"}}
        ask("weather?", Choice(0, tool_calls=WEATHER_CALLS, finish_reason="tool_calls"), "one", tools=[tool])
        ask("weather?", "Rain.", "two")  # without tools it is another question
        ask("weather?", "Rain, surely.", "two", tools=[tool])
        captures.store()
    with closing(connect_ro(tmp_path / "capture.db")) as conn:
        yield conn


def test_the_same_questions(twice: sqlite3.Connection) -> None:
    made = compare(twice, side("one", Selection()), side("two", Selection()), pairs=10)["pairs"]
    assert (made["count"], made["equal_replies"]) == (3, 1)
    assert [(pair["asked"], pair["b"]["reply"]) for pair in made["latest"]] == [
        ("weather?", "Rain, surely."),
        ("capital of Peru?", "Lima!"),
        ("capital of France?", "Paris."),
    ]
    assert made["latest"][0]["a"]["reply"].startswith('→ get_weather({"city":"Paris"')
    assert made["latest"][1]["a"]["model"] == "one"
    assert len(compare(twice, side("one", Selection()), side("two", Selection()), pairs=1)["pairs"]["latest"]) == 1
