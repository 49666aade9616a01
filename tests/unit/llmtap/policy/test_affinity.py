"""What belongs together: conversations by how they begin, sessions by their name, responses by their id."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.policy.affinity import Homes, prefix_key, session_key

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "What is a river?"}
REST = [{"role": "assistant", "content": "Water."}, {"role": "user", "content": "And a lake?"}]


def chat(*messages: dict[str, Any], **more: Any) -> int | None:
    return prefix_key("chat", {"model": "m", "messages": list(messages), **more})


def test_every_turn_of_a_conversation_has_the_same_key() -> None:
    first = chat(SYSTEM, FIRST)
    assert first is not None and first == chat(SYSTEM, FIRST, *REST) == chat(SYSTEM, FIRST, *REST, temperature=1, stream=True)


def test_what_begins_otherwise_has_another_key() -> None:
    first = chat(SYSTEM, FIRST)
    others = [
        chat(FIRST),
        chat({"role": "system", "content": "Be long."}, FIRST),
        chat(SYSTEM, {"role": "user", "content": "What is a mountain?"}),
        chat({"role": "developer", "content": "Be brief."}, FIRST),
        prefix_key("chat", {"model": "other", "messages": [SYSTEM, FIRST]}),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_where_one_text_ends_and_the_next_begins_matters() -> None:
    a = chat({"role": "system", "content": "ab"}, {"role": "user", "content": "c"})
    b = chat({"role": "system", "content": "a"}, {"role": "user", "content": "bc"})
    assert a != b


def test_parts_and_images() -> None:
    def with_image(url: str) -> int | None:
        parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        return chat({"role": "user", "content": parts})

    assert with_image("data:1") == with_image("data:1") != with_image("data:2")


@pytest.mark.parametrize(
    ("endpoint", "body", "same", "other"),
    [
        ("completions", {"prompt": "x" * 600}, {"prompt": "x" * 600 + "more"}, {"prompt": "y" * 600}),
        ("completions", {"prompt": [1] * 200}, {"prompt": [1] * 300}, {"prompt": [2] * 200}),
        ("completions", {"prompt": ["a", "b"]}, {"prompt": ["a", "c"]}, {"prompt": ["b", "a"]}),
        ("ollama_generate", {"prompt": "a"}, {"prompt": "a", "raw": True}, {"prompt": "a", "system": "s"}),
        ("ollama_chat", {"messages": [FIRST]}, {"messages": [FIRST, *REST]}, {"messages": [SYSTEM, FIRST]}),
        ("messages", {"messages": [FIRST]}, {"messages": [FIRST, *REST]}, {"system": "s", "messages": [FIRST]}),
        ("responses", {"input": "a"}, {"input": "a", "store": True}, {"input": "a", "instructions": "i"}),
        ("responses", {"input": [FIRST]}, {"input": [FIRST, *REST]}, {"input": [SYSTEM, FIRST]}),
    ],
)
def test_the_other_endpoints(endpoint: str, body: dict[str, Any], same: dict[str, Any], other: dict[str, Any]) -> None:
    key = prefix_key(endpoint, body)
    assert key is not None and key == prefix_key(endpoint, same) != prefix_key(endpoint, other)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("embeddings", {"input": "a"}),
        ("tokenize", {"prompt": "a"}),
        ("chat", {}),
        ("chat", {"messages": "no list"}),
        ("chat", {"messages": []}),
        ("chat", {"messages": ["no object"]}),
        ("completions", {"prompt": ""}),
        ("completions", {"prompt": []}),
    ],
)
def test_without_a_prompt_there_is_no_key(endpoint: str, body: dict[str, Any]) -> None:
    assert prefix_key(endpoint, body) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
)


@given(
    st.sampled_from(["chat", "completions", "responses", "messages", "ollama_chat", "ollama_generate", "score"]),
    st.dictionaries(st.sampled_from(["model", "messages", "prompt", "input", "system", "instructions"]), anything),
)
def test_any_body_gives_a_key_of_64_bits_or_none(endpoint: str, body: dict[str, Any]) -> None:
    key = prefix_key(endpoint, body)
    assert key is None or 0 <= key < 2**64


def test_sessions() -> None:
    assert session_key("a") == session_key("a") != session_key("b") and session_key("\udcff") >= 0


def test_homes_keep_the_latest() -> None:
    homes = Homes(size=2)
    for name in ("r1", "r2", "r1", "r3"):
        homes.note(name, f"backend of {name}")
    assert (homes.of("r1"), homes.of("r2"), homes.of("r3")) == ("backend of r1", None, "backend of r3")
