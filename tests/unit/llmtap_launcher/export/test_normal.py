"""Messages of every API in the one shape."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from llmtap_launcher.export.normal import Unfit, link_calls, normal, think, thoughts, tools_of
from llmtap_launcher.export.options import Shape
from llmtap_launcher.export.pictures import Pictures

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def of(message: dict[str, Any], **shape: Any) -> dict[str, Any]:
    with closing(sqlite3.connect(":memory:")) as conn:
        return normal(message, 1, Shape(**shape), Pictures(conn))


@pytest.mark.parametrize(
    ("stored", "out"),
    [
        ({"role": "developer", "content": "s"}, {"role": "system", "content": "s"}),
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        ({"role": "user", "content": "x", "name": "ada"}, {"role": "user", "content": "x", "name": "ada"}),
        ({"role": "user", "content": ["a", {"type": "input_text", "text": "b"}]}, {"role": "user", "content": "a\nb"}),
        ({"role": "user", "content": {"x": 1}}, {"role": "user", "content": '{"x":1}'}),
        ({"role": "assistant", "content": "x", "refusal": None, "audio": 1}, {"role": "assistant", "content": "x"}),
        ({"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "content": "no"}),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, {"role": "assistant", "content": "no"}),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
        ),
        (
            {"role": "tool", "content": "x", "tool_call_id": "c1", "name": "f"},
            {"role": "tool", "content": "x", "tool_call_id": "c1"},
        ),
        ({"role": "function", "content": "x", "name": "f"}, {"role": "tool", "content": "x"}),
    ],
)
def test_messages(stored: dict[str, Any], out: dict[str, Any]) -> None:
    assert of(stored) == out


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://e.org/a.png"}},
        {"type": "image_url", "image_url": "https://e.org/a.png"},
        {"type": "input_image", "image_url": "https://e.org/a.png"},
        {"type": "image", "source": {"type": "url", "url": "https://e.org/a.png"}},
    ],
)
def test_pictures_of_every_api(part: dict[str, Any]) -> None:
    out = of({"role": "user", "content": [part]})
    assert out["content"] == [{"type": "image_url", "image_url": {"url": "https://e.org/a.png"}}]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "critic", "content": "x"}, "role"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "audio"),
        ({"role": "user", "content": [{"type": "token_ids", "token_ids": [1]}]}, "token ids"),
        ({"role": "user", "content": [{"type": "file"}]}, "type file"),
        ({"role": "tool", "content": [{"type": "image_url", "image_url": {"url": "https://e.org"}}]}, "not the user's"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "attachment:" + "0" * 32 + ":"}}]}, "no longer"),
        ({"role": "assistant", "content": None, "tool_calls": [{"type": "custom"}]}, "no functions"),
    ],
)
def test_what_has_no_place(message: dict[str, Any], reason: str) -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.execute("CREATE TABLE attachments(hash, mime, content)")
        conn.execute("CREATE TABLE body_attachments(body_id, hash)")
        with pytest.raises(Unfit, match=reason):
            normal(message, 1, Shape(), Pictures(conn))


def test_arguments_as_text_and_as_object() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert of(message, tool_args="object")["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    ollama = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    assert of(ollama)["tool_calls"][0]["function"]["arguments"] == '{"a":1}'
    broken = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a'}}]}
    assert of(broken)["tool_calls"][0]["function"]["arguments"] == '{"a'
    with pytest.raises(Unfit):
        of(broken, tool_args="object")


def test_reasoning() -> None:
    for name in ("reasoning", "reasoning_content", "thinking"):
        assert thoughts({"role": "assistant", name: "hm"}) == "hm"
    stored = {"role": "assistant", "content": "x", "reasoning": "hm"}
    assert of(stored) == {"role": "assistant", "content": "x"}
    assert of(stored, reasoning="keep") == {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    assert of(stored, reasoning="inline")["content"] == "<think>\nhm\n</think>\n\nx"
    nothing = {"role": "assistant", "content": "x"}
    think(nothing, None, Shape("keep"))
    assert nothing == {"role": "assistant", "content": "x"}


def test_calls_without_ids_are_linked_in_order() -> None:
    def call() -> dict[str, Any]:
        return {"id": "", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call(), call()]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": None, "tool_calls": [call()]},
        {"role": "tool", "content": "3"},
    ]
    link_calls(messages)
    assert [c["id"] for m in messages for c in m.get("tool_calls", ())] == ["call_1", "call_2", "call_3"]
    assert [m["tool_call_id"] for m in messages if m["role"] == "tool"] == ["call_1", "call_2", "call_3"]


def test_tools_of_every_api() -> None:
    schema = {"type": "object"}
    whole = {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}
    anthropic = {"name": "f", "description": "d", "input_schema": schema}
    responses = {"type": "function", "name": "f", "description": "d", "parameters": schema}
    for tool in (whole, anthropic, responses):
        assert tools_of([tool, {"type": "web_search"}, 3]) == [whole]
