"""What the consumers of training data demand of a row, strictly: AssertionError says what is wrong.

OpenAI: its fine-tuning guide and the schemas `FineTuneChatRequestInput` and `FineTunePreferenceRequestInput` of its API
description. TRL: its page on dataset formats. ShareGPT and Alpaca: as Axolotl documents them. Batch: OpenAI's Batch API.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def openai_sft(row: Row) -> None:
    assert row.keys() <= {"messages", "tools", "parallel_tool_calls"}, row.keys()
    _openai_messages(row["messages"], weights=True)
    assert any(m["role"] == "assistant" and m.get("weight") == 1 for m in row["messages"])
    assert row["messages"][-1]["role"] == "assistant"
    _tools(row)


def openai_dpo(row: Row) -> None:
    assert row.keys() == {"input", "preferred_output", "non_preferred_output"}
    given = row["input"]
    assert given.keys() <= {"messages", "tools", "parallel_tool_calls"}
    _openai_messages(given["messages"], weights=False)
    assert given["messages"][-1]["role"] in ("user", "tool")
    _tools(given)
    for side in ("preferred_output", "non_preferred_output"):
        (message,) = row[side]
        assert message["role"] == "assistant"
        _openai_message(message, weights=False)
    assert row["preferred_output"] != row["non_preferred_output"]


def trl_sft(row: Row) -> None:
    assert row.keys() <= {"messages", "tools", "images"}
    _conversation(row["messages"])
    assert row["messages"][-1]["role"] == "assistant"
    _trl(row, row["messages"])


def trl_prompt_completion(row: Row) -> None:
    assert row.keys() <= {"prompt", "completion", "tools", "images"}
    _conversation(row["prompt"])
    _replies(row["completion"])
    _trl(row, row["prompt"])


def trl_preference(row: Row) -> None:
    assert row.keys() <= {"prompt", "chosen", "rejected", "tools", "images"}
    _conversation(row["prompt"])
    _replies(row["chosen"])
    _replies(row["rejected"])
    assert row["chosen"] != row["rejected"]
    _trl(row, row["prompt"])


def trl_kto(row: Row) -> None:
    assert type(row["label"]) is bool
    trl_prompt_completion({key: value for key, value in row.items() if key != "label"})


def sharegpt(row: Row) -> None:
    assert row.keys() <= {"conversations", "tools"}
    turns = row["conversations"]
    assert all(turn["from"] in ("system", "human", "gpt", "tool") and type(turn["value"]) is str for turn in turns)
    assert all(turn.keys() <= {"from", "value", "train"} for turn in turns)
    assert turns[-1]["from"] == "gpt" and turns[-1]["value"]
    if "tools" in row:
        assert type(json.loads(row["tools"])) is list


def alpaca(row: Row) -> None:
    assert row.keys() == {"instruction", "input", "output", "system"}
    assert all(type(value) is str for value in row.values())
    assert row["instruction"] and row["output"]


def batch(row: Row) -> None:
    assert row.keys() == {"custom_id", "method", "url", "body"}
    assert row["method"] == "POST" and row["url"] in ("/v1/chat/completions", "/v1/completions")
    assert "stream" not in row["body"]
    assert ("messages" in row["body"]) != ("prompt" in row["body"])


CONSUMERS: dict[str, Callable[[Row], None]] = {
    "openai-sft": openai_sft,
    "openai-dpo": openai_dpo,
    "trl-sft": trl_sft,
    "trl-prompt-completion": trl_prompt_completion,
    "trl-preference": trl_preference,
    "trl-kto": trl_kto,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "batch": batch,
}


# ---- OpenAI


def _openai_messages(messages: list[Row], *, weights: bool) -> None:
    assert messages
    waiting: set[str] = set()
    for message in messages:
        _openai_message(message, weights=weights)
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting, "a tool message answers no call"
            waiting.discard(message["tool_call_id"])
            continue
        assert not waiting, "a call is not answered"
        waiting = {call["id"] for call in message.get("tool_calls", ())}


_KEYS = {
    "system": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "tool_calls", "refusal"},
    "tool": {"role", "content", "tool_call_id"},
}


def _openai_message(message: Row, *, weights: bool) -> None:
    role = message["role"]
    allowed = _KEYS[role] | ({"weight"} if weights and role == "assistant" else set())
    assert message.keys() <= allowed, message.keys()
    content = message["content"]
    if role == "assistant" and message.get("tool_calls"):
        assert content is None or type(content) is str
        for call in message["tool_calls"]:
            assert call.keys() == {"id", "type", "function"} and call["type"] == "function" and call["id"]
            assert call["function"].keys() == {"name", "arguments"} and type(call["function"]["arguments"]) is str
    elif role == "user" and type(content) is list:
        for part in content:
            if part["type"] == "text":
                assert part.keys() == {"type", "text"}
            else:
                assert part["type"] == "image_url" and part["image_url"].keys() <= {"url", "detail"}
                assert re.match(r"https?://|data:image/(png|jpeg|webp|gif);base64,", part["image_url"]["url"])
    else:
        assert type(content) is str
    if weights and role == "assistant":
        assert message["weight"] in (0, 1)
    if role == "tool":
        assert message["tool_call_id"]


def _tools(row: Row) -> None:
    for tool in row.get("tools", ()):
        assert tool.keys() == {"type", "function"} and tool["type"] == "function"
        function = tool["function"]
        assert _NAME.fullmatch(function["name"]) and function.keys() <= {"name", "description", "parameters", "strict"}
    if "parallel_tool_calls" in row:
        assert type(row["parallel_tool_calls"]) is bool and row["tools"]


# ---- TRL


def _conversation(messages: list[Row]) -> None:
    assert type(messages) is list and messages
    for message in messages:
        assert message["role"] in ("system", "user", "assistant", "tool")
        assert "content" in message
        for call in message.get("tool_calls", ()):
            assert call["type"] == "function" and type(call["function"]["arguments"]) is dict


def _replies(messages: list[Row]) -> None:
    _conversation(messages)
    assert [message["role"] for message in messages] == ["assistant"]


def _trl(row: Row, messages: list[Row]) -> None:
    for tool in row.get("tools", ()):
        assert tool["type"] == "function" and tool["function"]["name"]
    kinds = {type(message["content"]) for message in messages if message["content"] is not None}
    if "images" in row:
        assert kinds == {list}
        marks = sum(part["type"] == "image" for message in messages for part in message["content"])
        assert marks == len(row["images"])
    else:
        assert kinds <= {str}
