"""Preferences and labels out of ratings and corrections."""

from __future__ import annotations

from typing import Any

from llmtap.core.feedback import Rating
from llmtap.core.feedback import encode as encode_feedback
from support.captures import START_US, Captures

U1 = {"role": "user", "content": "one"}


def rate(captures: Captures, uid: str, value: float | None, name: str = "thumb", **more: Any) -> None:
    captures.write(encode_feedback(Rating(uid, START_US, name, "user", value, **more)))


def both(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows)


def test_the_best_goes_with_each_that_is_worse(captures: Captures, run: Any) -> None:
    for text, value in (("good", 1.0), ("bad", -1.0), ("worse", -1.0), ("unrated", None)):
        uid = captures.exchange([U1], text)
        if value is not None:
            rate(captures, uid, value)
    other = captures.exchange([{"role": "user", "content": "two"}], "alone")
    rate(captures, other, 1.0)
    captures.store()
    rows, _ = run(captures.db, "trl-preference")
    assert both(rows) == [("good", "bad"), ("good", "worse")]
    assert all(row["prompt"] == [U1] for row in rows)
    rows, _ = run(captures.db, "openai-dpo")
    assert len(rows) == 2 and rows[0]["input"]["messages"] == [U1]


def test_other_tools_are_another_question(captures: Captures, run: Any) -> None:
    rate(captures, captures.exchange([U1], "a", asked={"tools": [{"type": "function", "function": {"name": "f"}}]}), 1.0)
    rate(captures, captures.exchange([U1], "b"), -1.0)
    captures.store()
    assert run(captures.db, "trl-preference")[0] == []


def test_names_do_not_mix_and_one_can_be_chosen(captures: Captures, run: Any) -> None:
    first, second = captures.exchange([U1], "a"), captures.exchange([U1], "b")
    rate(captures, first, 5.0, "style")
    rate(captures, second, 2.0, "style")
    rate(captures, first, -1.0)
    rate(captures, second, 1.0)
    captures.store()
    assert both(run(captures.db, "trl-preference", score="style")[0]) == [("a", "b")]
    assert both(run(captures.db, "trl-preference", score="thumb")[0]) == [("b", "a")]
    assert len(run(captures.db, "trl-preference")[0]) == 1  # never both ways


def test_the_same_reply_twice_has_the_mean(captures: Captures, run: Any) -> None:
    for text, value in (("a", 5.0), ("a", 1.0), ("b", 4.0)):
        rate(captures, captures.exchange([U1], text), value, "score")
    captures.store()
    assert both(run(captures.db, "trl-preference")[0]) == [("b", "a")]


def test_corrections(captures: Captures, run: Any) -> None:
    uid = captures.exchange([U1], "wrong")
    rate(captures, uid, None, correction={"content": "right"})
    captures.store()
    assert both(run(captures.db, "trl-preference")[0]) == [("right", "wrong")]
    rows, _ = run(captures.db, "trl-kto")
    assert sorted((row["completion"][0]["content"], row["label"]) for row in rows) == [("right", True), ("wrong", False)]


def test_labels_by_threshold(captures: Captures, run: Any) -> None:
    for text, value in (("a", 5.0), ("b", 3.0), ("c", 2.0)):
        rate(captures, captures.exchange([U1], text), value, "score")
    captures.store()
    rows, _ = run(captures.db, "trl-kto", threshold=2.5)
    assert {row["completion"][0]["content"]: row["label"] for row in rows} == {"a": True, "b": True, "c": False}
