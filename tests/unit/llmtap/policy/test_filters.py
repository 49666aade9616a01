"""What filters make of a request."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.policy.filters import Filter, redacted

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "my key is sk-123"}],
    "temperature": 1,
    "max_tokens": 900,
    "logit_bias": {},
}


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        (Filter(), True),
        (Filter(models=("Qwen/*",)), True),
        (Filter(models=("Llama*", "Qwen/Q?")), True),
        (Filter(models=("Llama*",)), False),
        (Filter(keys=frozenset(("a", "b"))), True),
        (Filter(keys=frozenset(("b",))), False),
        (Filter(endpoints=frozenset(("chat",))), True),
        (Filter(endpoints=frozenset(("embeddings",))), False),
        (Filter(models=("Qwen/*",), keys=frozenset(("b",))), False),
    ],
)
def test_for_whom(entry: Filter, fits: bool) -> None:
    assert entry.fits("Qwen/Q1", "a", "chat") is fits


def test_no_model_or_no_key_fits_no_list() -> None:
    assert not Filter(models=("*",)).fits(None, None, "chat") and not Filter(keys=frozenset(("a",))).fits("m", None, "chat")


def test_set_and_strip_leave_the_original_alone() -> None:
    before = copy.deepcopy(CHAT)
    entry = Filter(strip=("logit_bias", "unknown"), set={"temperature": 0, "chat_template_kwargs": {"a": 1}})
    out = entry.apply("chat", CHAT)
    assert before == CHAT and "logit_bias" not in out and out["temperature"] == 0
    out["chat_template_kwargs"]["a"] = 2
    assert entry.set is not None and entry.set["chat_template_kwargs"] == {"a": 1}


@pytest.mark.parametrize(
    ("endpoint", "obj", "expected"),
    [
        ("chat", {"max_tokens": 900}, {"max_tokens": 100}),
        ("chat", {"max_completion_tokens": 900, "max_tokens": 50}, {"max_completion_tokens": 100, "max_tokens": 50}),
        ("chat", {}, {"max_tokens": 100}),
        ("chat", {"max_tokens": None}, {"max_tokens": 100}),
        ("completions", {"max_tokens": 99}, {"max_tokens": 99}),
        ("responses", {"max_output_tokens": 101}, {"max_output_tokens": 100}),
        ("responses", {}, {"max_output_tokens": 100}),
        ("embeddings", {}, {}),
        ("ollama_chat", {}, {"options": {"num_predict": 100}}),
        ("ollama_chat", {"options": {"num_predict": -1, "seed": 1}}, {"options": {"num_predict": 100, "seed": 1}}),
        ("ollama_generate", {"options": {"num_predict": 7}}, {"options": {"num_predict": 7}}),
    ],
)
def test_most_tokens(endpoint: str, obj: dict[str, Any], expected: dict[str, Any]) -> None:
    assert Filter(max_tokens=100).apply(endpoint, obj) == expected


@pytest.mark.parametrize(
    ("endpoint", "obj", "expected"),
    [
        (
            "chat",
            {"messages": [{"role": "user", "content": "hi"}]},
            [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}],
        ),
        ("chat", {"messages": [{"role": "system", "content": "own"}]}, [{"role": "system", "content": "S\n\nown"}]),
        ("chat", {"messages": [{"role": "developer", "content": ""}]}, [{"role": "developer", "content": "S"}]),
        (
            "ollama_chat",
            {"messages": [{"role": "system", "content": [{"type": "text", "text": "own"}]}]},
            [{"role": "system", "content": [{"type": "text", "text": "S"}, {"type": "text", "text": "own"}]}],
        ),
        ("chat", {"messages": []}, [{"role": "system", "content": "S"}]),
        ("chat", {"messages": "odd"}, "odd"),
    ],
)
def test_a_system_prompt_in_messages(endpoint: str, obj: dict[str, Any], expected: Any) -> None:
    assert Filter(system_prompt="S").apply(endpoint, obj)["messages"] == expected


@pytest.mark.parametrize(
    ("endpoint", "member", "own", "expected"),
    [
        ("messages", "system", None, "S"),
        ("messages", "system", "own", "S\n\nown"),
        (
            "messages",
            "system",
            [{"type": "text", "text": "own"}],
            [{"type": "text", "text": "S"}, {"type": "text", "text": "own"}],
        ),
        ("responses", "instructions", "own", "S\n\nown"),
        ("ollama_generate", "system", None, "S"),
    ],
)
def test_a_system_prompt_elsewhere(endpoint: str, member: str, own: Any, expected: Any) -> None:
    obj = {} if own is None else {member: own}
    assert Filter(system_prompt="S").apply(endpoint, obj)[member] == expected
    assert Filter(system_prompt="S").apply("embeddings", {"input": "x"}) == {"input": "x"}


KEYS = ((re.compile(r"sk-\w+"), "[key]"), (re.compile(r"(\w+)@example\.org"), r"\1@…"))


def test_redaction_finds_every_text_and_nothing_else() -> None:
    obj = {
        "model": "sk-model",
        "messages": [
            {"role": "sk-role", "content": "sk-1 and sk-2, ann@example.org"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "sk-3"}, {"type": "image_url", "image_url": {"url": "data:sk-4"}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": '{"k":"sk-5"}'}}]},
        ],
        "input": ["sk-6", [1, 2]],
        "temperature": 0,
    }
    out = Filter(redact=KEYS).apply("chat", obj)
    assert out["model"] == "sk-model" and out["messages"][0] == {"role": "sk-role", "content": "[key] and [key], ann@…"}
    assert out["messages"][1]["content"][0]["text"] == "[key]" and "data:sk-4" in str(out["messages"][1])
    assert "sk-5" not in str(out["messages"][2]) and out["input"] == ["[key]", [1, 2]]
    assert "sk-3" in str(obj), "the original stays"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))


@given(JSON)
def test_without_a_match_nothing_changes(value: Any) -> None:
    assert redacted(value, ((re.compile("no text has this \x00\x01"), "x"),)) == value
