"""Arguments as request bodies."""

from __future__ import annotations

from typing import Any

import pytest

from llmtap.middleware.requests import chat_body, first_model, text_body


def test_bodies() -> None:
    chat = chat_body([{"role": "user", "content": "hi"}], "m", True, [{"type": "function"}], {"stream_options": {}}, {"top_k": 5})
    assert chat == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function"}],
        "stream": True,
        "top_k": 5,
        "stream_options": {},
    }
    assert text_body([1, 2], "m", False, {"model": "other"}, {}) == {"model": "other", "prompt": [1, 2]}


@pytest.mark.parametrize("messages", ["hi", {"role": "user"}, ["hi"], b"x"])
def test_messages_that_are_none(messages: Any) -> None:
    with pytest.raises(ValueError, match="messages"):
        chat_body(messages, "m", False, None, None, {})


def test_the_first_model() -> None:
    assert first_model({"data": [{"id": "a"}, {"id": "b"}]}, "u") == "a"
    for answer in ({"data": []}, {}, None, []):
        with pytest.raises(LookupError, match="model="):
            first_model(answer, "http://h/v1/models")
