"""Whose the replies of a history are."""

from __future__ import annotations

from typing import Any

from llmtap.core.feedback import Rating
from llmtap.core.feedback import encode as encode_feedback
from llmtap.core.record import Choice
from support.captures import START_US, Captures

U1, U2 = {"role": "user", "content": "one"}, {"role": "user", "content": "two"}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def weights(captures: Captures, run: Any, **given: Any) -> list[list[int]]:
    captures.store()
    rows, _ = run(captures.db, "openai-sft", **given)
    return [[m["weight"] for m in row["messages"] if m["role"] == "assistant"] for row in rows]


def test_nobody_gave_this_reply(captures: Captures, run: Any) -> None:
    captures.exchange([U1, said("made up"), U2], "yes")
    assert weights(captures, run) == [[0, 1]]
    assert weights(captures, run, limit=1) == [[0, 1]]


def test_a_reply_of_ours_also_when_it_was_not_selected(captures: Captures, run: Any) -> None:
    captures.exchange([U1], Choice(0, content="cut", finish_reason="length"))
    captures.exchange([U1, said("cut"), U2], "yes")
    assert weights(captures, run) == [[1, 1]]


def test_another_choice_a_correction_and_a_trimmed_reply(captures: Captures, run: Any) -> None:
    captures.exchange([U1], [Choice(0, content="a", finish_reason="stop"), Choice(1, content="b", finish_reason="stop")])
    captures.exchange([U1, said("b"), U2], "yes")
    uid = captures.exchange([U2], "wrong")
    captures.write(encode_feedback(Rating(uid, START_US, "thumb", "user", -1.0, correction={"content": "right"})))
    captures.exchange([U2, said("right"), U1], "yes")
    captures.exchange([{"role": "user", "content": "three"}], " spaced  out \n")
    captures.exchange([{"role": "user", "content": "three"}, said("spaced out"), U1], "yes")
    assert [1, 1] in (found := weights(captures, run)) and all(0 not in row for row in found)
