"""Turns as conversations: reasoning of this very exchange, tools, corrections, what is no longer there."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from llmtap.core.feedback import Rating
from llmtap.core.feedback import encode as encode_feedback
from llmtap.core.record import Choice
from support.captures import START_US, Captures

U1, U2 = {"role": "user", "content": "one"}, {"role": "user", "content": "two"}
A1 = {"role": "assistant", "content": "yes"}


def test_the_same_words_after_other_thoughts(captures: Captures, run: Any) -> None:
    captures.exchange([U1], Choice(0, content="yes", reasoning="first", finish_reason="stop"))
    captures.exchange([U2], Choice(0, content="yes", reasoning="second", finish_reason="stop"))
    captures.exchange([U2, A1, U1], Choice(0, content="no", finish_reason="stop"))
    captures.store()
    rows, _ = run(captures.db, "trl-sft", reasoning="keep")
    assert [[m.get("reasoning_content") for m in row["messages"]] for row in rows] == [
        [None, "second", None, None],
        [None, "first"],
    ]


def test_corrections_take_the_place_of_the_reply(captures: Captures, run: Any) -> None:
    uid = captures.exchange([U1], "wrong")
    captures.write(encode_feedback(Rating(uid, START_US, "thumb", "user", -1.0, correction={"content": "right"})))
    captures.store()
    assert run(captures.db, "trl-sft")[0][0]["messages"][-1]["content"] == "wrong"
    assert run(captures.db, "trl-sft", corrected=True)[0][0]["messages"][-1]["content"] == "right"


def test_tools_old_and_new_and_parallel(captures: Captures, run: Any) -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    captures.exchange([U1], "yes", asked={"functions": [function]})
    captures.exchange([U2], "yes", asked={"tools": [{"type": "function", "function": function}], "parallel_tool_calls": False})
    captures.store()
    rows, _ = run(captures.db, "openai-sft")
    assert [row["tools"] for row in rows] == [[{"type": "function", "function": function}]] * 2
    assert [row["parallel_tool_calls"] for row in rows] == [False, True]
    assert all("tools" not in row for row in run(captures.db, "openai-sft", tools=False)[0])


def test_what_is_left_out_is_counted(captures: Captures, run: Any) -> None:
    captures.exchange([U1], Choice(0, content="", reasoning="only thought", finish_reason="stop"))
    captures.exchange([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}], "yes")
    captures.exchange([U2], "kept")
    captures.store()
    rows, report = run(captures.db, "trl-sft")
    assert len(rows) == 1
    assert report.left_out == {"replies that say nothing": 1, "audio": 1}


def test_texts_that_are_gone(captures: Captures, run: Any) -> None:
    captures.exchange([U1], "yes")
    captures.store()
    with closing(sqlite3.connect(captures.db)) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        conn.execute("DELETE FROM bodies WHERE role = 'user'")
        conn.commit()
    rows, report = run(captures.db, "trl-sft")
    assert (rows, report.left_out) == ([], {"texts that are no longer stored": 1})
