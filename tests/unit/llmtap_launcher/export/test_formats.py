"""Every row of every format passes what its consumer demands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtap_launcher.export.conversations import Conversation
from llmtap_launcher.export.formats import FORMATS, check_calls, conversation_row, pair_row, rated_row
from llmtap_launcher.export.normal import Unfit
from llmtap_launcher.export.options import Shape
from support.captures import Captures, weather
from support.consumers import CONSUMERS

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def conversation(*messages: dict[str, Any], tools: Any = (), foreign: Any = ()) -> Conversation:
    replies = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    return Conversation(1, "u", [dict(m) for m in messages], list(tools), True, list(foreign), b"r", replies)


@pytest.mark.parametrize("name", list(CONSUMERS))
def test_the_demo_passes_its_consumer(name: str, demo_db: Path, run: Any) -> None:
    rows, report = run(demo_db, name)
    assert len(rows) == report.rows > 5
    for row in rows:
        CONSUMERS[name](row)


def test_raw_has_everything(demo_db: Path, run: Any) -> None:
    rows, report = run(demo_db, "raw")
    assert report.rows == report.selected == len({row["uid"] for row in rows})
    rated = next(row for row in rows if row["ratings"])
    assert rated["ratings"][0].keys() == {"name", "value", "string_value", "source", "comment", "at", "correction"}
    assert rated["choices"][0]["content"] and rated["messages"][-1]["role"] in ("user", "tool")
    assert any(row["outcome"] == "timeout" for row in rows)


def test_a_conversation_with_tools(captures: Captures, run: Any) -> None:
    weather(captures)
    (row,), report = run(captures.db, "openai-sft")
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert row["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"city":"Paris","unit":"celsius"}'
    assert [m.get("weight") for m in row["messages"]] == [None, None, 1, None, None, 1]
    assert row["tools"][0]["function"]["name"] == "get_weather"
    assert (report.selected, report.superseded) == (2, 1)  # the broken one is not selected


def test_reasoning_is_dropped_kept_or_inline(captures: Captures, run: Any) -> None:
    weather(captures)
    reason = "Two cities, so the tool is called twice."
    assert reason not in str(run(captures.db, "trl-sft")[0])
    (kept,), _ = run(captures.db, "trl-sft", reasoning="keep")
    assert kept["messages"][2]["reasoning_content"] == reason
    (inline,), _ = run(captures.db, "openai-sft", reasoning="inline")
    assert inline["messages"][2]["content"] == f"<think>\n{reason}\n</think>\n\n"


def test_sharegpt_writes_calls_as_hermes_does() -> None:
    row = conversation_row("sharegpt")(
        conversation(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, tools=[{"type": "function"}]), Shape()
    )
    assert row["conversations"][1] == {"from": "gpt", "value": '<tool_call>\n{"name":"f","arguments":{"a":1}}\n</tool_call>'}
    assert row["tools"] == '[{"type":"function"}]'


def test_alpaca_is_one_question_and_one_answer() -> None:
    make = conversation_row("alpaca")
    answer = {"role": "assistant", "content": "hello"}
    given = conversation({"role": "system", "content": "s"}, USER, answer)
    assert make(given, Shape()) == {"instruction": "hi", "input": "", "output": "hello", "system": "s"}
    for unfit in (
        conversation(USER, answer, USER, answer),
        conversation(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}),
        conversation({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, answer),
    ):
        with pytest.raises(Unfit):
            make(unfit, Shape())


def test_marks_and_weights_of_replies_that_are_not_ours() -> None:
    answer = {"role": "assistant", "content": "a"}
    given = conversation(USER, answer, USER, answer, foreign=[1])
    marked = conversation_row("trl-sft")(given, Shape(mark=True))
    assert [m.get("train") for m in marked["messages"]] == [None, False, None, True]
    weighed = conversation_row("openai-sft")(conversation(USER, answer, USER, answer, foreign=[1]), Shape())
    assert [m.get("weight") for m in weighed["messages"]] == [None, 0, None, 1]


def test_pictures_get_a_column_of_their_own_for_trl() -> None:
    seen = {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:1"}}]}
    row = rated_row(conversation(seen, {"role": "assistant", "content": "a"}), True)
    assert row["images"] == ["data:1"]
    assert row["prompt"][0]["content"] == [{"type": "text", "text": "look"}, {"type": "image"}]
    assert row["completion"][0]["content"] == [{"type": "text", "text": "a"}]
    assert row["label"] is True


def test_a_pair() -> None:
    better, worse = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
    row = pair_row("trl-preference", conversation(USER, better), conversation(USER, worse))
    assert row == {"prompt": [USER], "chosen": [better], "rejected": [worse]}


def test_calls_must_be_answered() -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    told = {"role": "tool", "content": "x", "tool_call_id": "c1"}
    check_calls([USER, asked, told, asked])
    for wrong in ([USER, asked, USER], [USER, told], [USER, asked, told, told]):
        with pytest.raises(Unfit):
            check_calls(wrong)


def test_every_format_says_what_it_is() -> None:
    assert all(form.what and form.reasoning[0] == "drop" for form in FORMATS.values())
