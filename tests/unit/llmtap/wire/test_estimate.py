from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llmtap.wire.estimate import PromptEstimator
from llmtap.wire.request import ParsedRequest, parse
from support import naive, recordings

WORDS = "the quick brown fox jumps over a lazy dog and counts tokens while gateways carry messages".split()


def request(body: dict[str, Any], endpoint: str = "chat") -> ParsedRequest:
    return parse(endpoint, json.dumps(body).encode())


def chat(text: str, *more: str, model: str = "m", **fields: Any) -> ParsedRequest:
    return request({"model": model, "messages": [{"role": "user", "content": t} for t in (text, *more)], **fields})


def tokens_of(texts: list[str], tools: int = 0) -> int:
    """A tokenizer of one token a word, a template of 3 + 5 a message, 140 for tools."""
    return 3 + sum(5 + len(text.split()) for text in texts) + (140 + tools // 4 if tools else 0)


def test_a_first_guess_is_of_the_right_size() -> None:
    guess = PromptEstimator().guess(chat("What is the weather in Paris?"))
    assert guess is not None and 10 <= guess <= 25


def test_what_finished_replies_said_makes_it_close() -> None:
    estimator, pick = PromptEstimator(), random.Random(1)
    tools = [{"type": "function", "function": {"name": "get_weather", "description": "x" * 80}}]
    for _ in range(60):
        texts = [" ".join(pick.choices(WORDS, k=pick.randint(1, 60))) for _ in range(pick.randint(1, 4))]
        with_tools = pick.random() < 0.3
        parsed = chat(*texts, **({"tools": tools} if with_tools else {}))
        estimator.learn(parsed, tokens_of(texts, len(json.dumps(tools)) if with_tools else 0))
    for size in (1, 10, 40):
        texts = [" ".join(pick.choices(WORDS, k=size)), "and so on"]
        guess = estimator.guess(chat(*texts))
        assert guess is not None and abs(guess - tokens_of(texts)) <= 4
    texts = ["what is the weather"]
    guess = estimator.guess(chat(*texts, tools=tools))
    assert guess is not None and abs(guess - tokens_of(texts, len(json.dumps(tools)))) <= 8


def test_models_and_endpoints_are_kept_apart() -> None:
    estimator = PromptEstimator()
    for _ in range(20):
        estimator.learn(chat("hello there", model="wide"), 100)
        estimator.learn(chat("hello there", model="narrow"), 4)
    wide, narrow = estimator.guess(chat("hello there", model="wide")), estimator.guess(chat("hello there", model="narrow"))
    assert wide is not None and narrow is not None
    assert abs(wide - 100) <= 8 and abs(narrow - 4) <= 3


@pytest.mark.parametrize(
    ("endpoint", "body", "guess"),
    [
        ("completions", {"prompt": [1, 2, 3]}, 3),
        ("completions", {"prompt": [[1, 2], [3, 4, 5]]}, 5),
        ("completions", {}, None),
        ("completions", {"prompt": []}, None),
        ("completions", {"prompt": 7}, None),
        ("responses", {"input": None}, None),
    ],
)
def test_token_ids_are_counted_and_nothing_is_guessed_of_nothing(endpoint: str, body: dict[str, Any], guess: int | None) -> None:
    estimator = PromptEstimator()
    estimator.learn(request(body, endpoint), 12)
    assert estimator.guess(request(body, endpoint)) == guess


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [3, None, {"content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}], "tools": "x", "system": 4},
        {"messages": [{"content": "\ud800", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        {"input": [{"role": "user", "content": "x"}, "y", None], "instructions": "z"},
        {"prompt": ["a", "b"], "tools": [{}]},
    ],
)
def test_odd_requests(body: dict[str, Any]) -> None:
    parsed = ParsedRequest("chat", body, False)
    estimator = PromptEstimator()
    estimator.learn(parsed, 5)
    guess = estimator.guess(parsed)
    assert guess is not None and guess >= 1


def test_memory_is_bounded() -> None:
    estimator = PromptEstimator()
    for number in range(1000):
        estimator.learn(chat("x", model=f"m{number}"), 5)
    assert len(estimator._lines) == 256


def test_the_prompts_of_the_recordings_within_8_tokens() -> None:
    """Each learned from the others: a model's own replies are all it takes."""
    expectations = json.loads(naive.EXPECTATIONS.read_text(encoding="utf-8"))
    known = []
    for name in recordings.names():
        prompt = expectations[name]["usage"][0]
        recording = recordings.load(name)
        if name.startswith("vllm-0.33.0/") and prompt and expectations[name]["endpoint"] == "chat" and recording.request_body:
            known.append((name, parse("chat", recording.request_body), prompt))
    assert len(known) > 10
    for name, parsed, prompt in known:
        estimator = PromptEstimator()
        for _ in range(3):
            for other, theirs, tokens in known:
                if other != name:
                    estimator.learn(theirs, tokens)
        guess = estimator.guess(parsed)
        assert guess is not None and abs(guess - prompt) <= 8, (name, guess, prompt)
