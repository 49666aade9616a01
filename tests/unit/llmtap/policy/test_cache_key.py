"""Cache keys: the same for what means the same, and never for anything else."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from llmtap.policy.cache_key import CACHEABLE, IGNORED, cache_key, deterministic

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
    "temperature": 0,
    "max_tokens": 16,
    "top_p": 1.0,
    "stop": ["\n"],
    "logit_bias": {"50256": -100},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
}


def key(body: dict[str, Any], endpoint: str = "chat", owner: str = "key:a", path: str = "/v1/chat/completions?") -> bytes | None:
    return cache_key(endpoint, path, body, body.get("model"), owner)


def test_order_of_members_and_how_it_is_sent_do_not_matter() -> None:
    other = dict(reversed(BODY.items())) | {"stream": True, "stream_options": {"include_usage": True}, "user": "u"}
    other |= {"safety_identifier": "s", "prompt_cache_key": "p", "request_id": "r", "priority": 3}
    assert key(BODY) == key(other) is not None


@pytest.mark.parametrize(
    "change",
    [{"model": "n"}, {"temperature": 0.0}, {"seed": 1}, {"max_tokens": 17}, {"unheard_of": 1}, {"cache_salt": "x"}, {"n": None}],
)
def test_everything_else_does(change: dict[str, Any]) -> None:
    assert key(BODY) != key(BODY | change)


def test_whose_and_where() -> None:
    keys = {
        key(BODY),
        key(BODY, owner="key:b"),
        key(BODY, owner=""),
        key(BODY, path="/v1/chat/completions?x=1"),
        cache_key("chat", "/v1/chat/completions?", BODY, "another name for m", "key:a"),
    }
    assert len(keys) == 5


def test_forms_are_apart_where_they_are_not_made_from_each_other() -> None:
    assert key(BODY, "messages") != key(BODY | {"stream": True}, "messages")


@pytest.mark.parametrize(
    "body",
    [
        {"stream_options": {"continuous_usage_stats": True}},
        {"stream_options": 1},
        {"seed": 2**70},
        {"user_text": "\ud800"},
    ],
)
def test_what_has_none(body: dict[str, Any]) -> None:
    assert key(BODY | body) is None


@pytest.mark.parametrize(
    ("endpoint", "body", "answer"),
    [
        ("chat", {"temperature": 0}, True),
        ("chat", {"temperature": 0.0}, True),
        ("chat", {"seed": 0}, True),
        ("chat", {}, False),
        ("chat", {"temperature": 0.1}, False),
        ("chat", {"temperature": False}, False),
        ("chat", {"seed": None}, False),
        ("ollama_chat", {"options": {"temperature": 0}}, True),
        ("ollama_chat", {"temperature": 0}, False),
        ("ollama_generate", {"options": 5}, False),
        ("embeddings", {}, True),
        ("rerank", {}, True),
    ],
)
def test_deterministic(endpoint: str, body: dict[str, Any], answer: bool) -> None:
    assert deterministic(endpoint, endpoint in ("chat", "completions", "messages"), body) is answer


def test_wrong_answer_hunt() -> None:
    """100,000 random pairs of requests that differ in one place: the same key only where a documented member differs."""
    rng = random.Random(20261121)
    hit = 0
    for _ in range(100_000):
        body = _random_body(rng)
        other = copy.deepcopy(body)
        member = _change(rng, other)
        same = key(body) == key(other)
        assert same == (member in IGNORED), (member, body, other)
        hit += same
    assert hit > 5_000, "the documented members were among the changes"
    assert "chat" in CACHEABLE


_VALUES: list[Any] = [None, True, False, 0, 1, -1, 2**53, 0.5, 1.0, "", "0", "1", "true", "null", [], {}, [0], {"a": 1}]
_VALUES += ["\u00e9", "e\u0301"]  # one letter, written in two ways
_NAMES = ["temperature", "seed", "top_k", "stop", "tools", "metadata", "store", "x", *sorted(IGNORED - {"stream_options"})]


def _random_body(rng: random.Random) -> dict[str, Any]:
    messages = [{"role": rng.choice(["user", "system"]), "content": rng.choice("abc") * rng.randint(0, 3)} for _ in range(2)]
    return {"model": rng.choice("mn"), "messages": messages} | {name: rng.choice(_VALUES) for name in rng.sample(_NAMES, 4)}


def _change(rng: random.Random, body: dict[str, Any]) -> str:
    """Make one place of it something else, and say which member it belongs to."""
    kind = rng.randrange(4)
    if kind == 0:
        message = rng.choice(body["messages"])
        message[rng.choice(["content", "role", "name"])] = "changed"
        return "messages"
    if kind == 1:
        body["messages"].insert(rng.randint(0, 2), {"role": "user", "content": ""})
        return "messages"
    name = rng.choice(_NAMES)
    if kind == 2 and name in body:
        del body[name]
        return name
    old = body.get(name, ...)
    # 1 and True and 1.0 are equal to Python, and different to JSON
    body[name] = rng.choice([value for value in _VALUES if old is ... or repr(value) != repr(old)])
    return name
