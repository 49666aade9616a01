"""Putting requests together and their reply apart."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.policy.batch import ITEMS, Part, Reply, Unsplittable, combine, part_of

PATH = {"embeddings": "/v1/embeddings", "completions": "/v1/completions", "chat": "/v1/chat/completions"}


def part(endpoint: str, most: int = 8, **body: Any) -> Part | None:
    return part_of(endpoint, PATH[endpoint], {"model": "m", **body}, most)


@pytest.mark.parametrize(
    ("endpoint", "body", "items"),
    [
        ("embeddings", {"input": "a"}, (b'"a"',)),
        ("embeddings", {"input": ["a", "b"]}, (b'"a"', b'"b"')),
        ("embeddings", {"input": [1, 2]}, (b"[1,2]",)),
        ("embeddings", {"input": [[1, 2], [3]]}, (b"[1,2]", b"[3]")),
        ("completions", {"prompt": "a", "stream": False}, (b'"a"',)),
        ("chat", {"messages": [{"role": "user", "content": "a"}]}, (b'[{"content":"a","role":"user"}]',)),
    ],
)
def test_what_may_go_together(endpoint: str, body: dict[str, Any], items: tuple[bytes, ...]) -> None:
    found = part(endpoint, **body)
    assert found is not None and found.items == items


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("completions", {"prompt": "a", "stream": True}),
        ("completions", {"prompt": None}),
        ("completions", {}),
        ("embeddings", {"input": []}),
        ("embeddings", {"input": ["a", 1]}),
        ("embeddings", {"input": [[]]}),
        ("embeddings", {"input": [{"image": "x"}]}),
        ("embeddings", {"input": list("abcdefgh")}),
        ("embeddings", {"input": "a", "seed": 2**70}),
        ("chat", {"messages": [], "n": 1}),
        ("chat", {"messages": [{"role": "user", "content": "a"}], "n": 2}),
    ],
)
def test_what_goes_alone(endpoint: str, body: dict[str, Any]) -> None:
    assert part(endpoint, **body) is None


def test_equal_in_everything_else() -> None:
    one = part("embeddings", input="a")
    assert one is not None
    assert one.group == part("embeddings", input="b", user="somebody").group  # type: ignore[union-attr]
    for other in ({"input": "a", "dimensions": 4}, {"input": "a", "model": "n"}, {"input": [1]}):
        found = part("embeddings", **other)
        assert found is not None and found.group != one.group
    other = part_of("embeddings", "/v1/embeddings?x=1", {"model": "m", "input": "a"}, 8)
    assert other is not None and other.group != one.group


def parts(endpoint: str, *asked: Any) -> list[Part]:
    member = ITEMS[endpoint]
    found = [part(endpoint, 100, **{member: one}) for one in asked]
    assert None not in found
    return found  # type: ignore[return-value]


def test_the_same_text_is_sent_once() -> None:
    asked = {"model": "m", "input": "x", "user": "u", "dimensions": 2}
    body, places = combine("embeddings", asked, parts("embeddings", "a", ["b", "a"], "a"))
    assert orjson.loads(body) == {"model": "m", "dimensions": 2, "input": ["a", "b"]}
    assert places == {b'"a"': 0, b'"b"': 1}


def embedded(body: bytes) -> bytes:
    """What a server would answer: each text's vector is its length."""
    texts = orjson.loads(body)["input"]
    data = [{"index": n, "object": "embedding", "embedding": [len(text)]} for n, text in enumerate(texts)]
    data.reverse()  # the order is in the index
    tokens = sum(map(len, texts))
    return orjson.dumps(
        {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    )


@given(st.lists(st.text(max_size=6) | st.lists(st.text(max_size=6), min_size=1, max_size=4), min_size=1, max_size=9))
def test_everyone_gets_their_own_vectors(inputs: list[Any]) -> None:
    found = parts("embeddings", *inputs)
    body, places = combine("embeddings", {"model": "m"}, found)
    reply = Reply("embeddings", embedded(body), places)
    for asked, own in zip(inputs, found, strict=True):
        answer = orjson.loads(reply.part(own))
        texts = [asked] if isinstance(asked, str) else asked
        assert [d["embedding"] for d in answer["data"]] == [[len(text)] for text in texts]
        assert [d["index"] for d in answer["data"]] == list(range(len(texts)))
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] >= 0
    different = [p for n, p in enumerate(found) if len(p.items) == 1 and p not in found[:n]]
    if len(different) == len(found) == len(places):
        shares = [orjson.loads(reply.part(p))["usage"]["prompt_tokens"] for p in found]
        texts = [one if isinstance(one, str) else one[0] for one in inputs]
        assert sum(shares) == sum(map(len, texts)), "the parts add up"


def test_completions_with_several_choices_each() -> None:
    found = parts("completions", "a", "bb")
    choices = [{"index": n, "text": f"t{n}" * (n + 1), "finish_reason": "stop"} for n in range(4)]
    usage = {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13, "prompt_tokens_details": None}
    _, places = combine("completions", {}, found)
    reply = Reply("completions", orjson.dumps({"id": "i", "choices": choices, "usage": usage}), places)
    first, second = (orjson.loads(reply.part(p)) for p in found)
    assert [(c["index"], c["text"]) for c in first["choices"]] == [(0, "t0"), (1, "t1t1")]
    assert [(c["index"], c["text"]) for c in second["choices"]] == [(0, "t2t2t2"), (1, "t3t3t3t3")]
    assert first["usage"]["completion_tokens"] + second["usage"]["completion_tokens"] == 10
    assert first["usage"]["completion_tokens"] < second["usage"]["completion_tokens"]
    assert second["usage"]["total_tokens"] == second["usage"]["prompt_tokens"] + second["usage"]["completion_tokens"]
    assert first["id"] == "i" and first["usage"]["prompt_tokens_details"] is None


def test_chats() -> None:
    talks = [[{"role": "user", "content": text}] for text in ("a", "b")]
    found = parts("chat", *talks)
    body, places = combine("chat", {"model": "m", "messages": talks[0]}, found)
    assert orjson.loads(body)["messages"] == talks
    choices = [{"index": n, "message": {"role": "assistant", "content": f"m{n}"}} for n in range(2)]
    reply = Reply("chat", orjson.dumps({"choices": choices}), places)
    assert orjson.loads(reply.part(found[1]))["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "m1"}}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data":3}',
        b'{"data":[]}',
        b'{"data":[{"index":0}]}',
        b'{"data":[{"index":0},{"index":0}]}',
        b'{"data":[{"index":0},{"index":7}]}',
        b'{"data":[{"index":0},{}]}',
        b'{"data":[{"index":0},{"index":1},{"index":2}]}',
    ],
)
def test_what_cannot_be_cut_up(body: bytes) -> None:
    with pytest.raises(Unsplittable):
        Reply("embeddings", body, {b'"a"': 0, b'"b"': 1})
