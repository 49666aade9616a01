"""The arguments of both clients as request bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: how a call says what no request body has
Extra = Mapping[str, Any] | None


def chat_body(
    messages: Sequence[Mapping[str, Any]],
    model: str,
    stream: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    extra: Extra,
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """A chat. Raises ValueError for messages that are none."""
    if isinstance(messages, (str, bytes, Mapping)) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError('messages: a list of {"role": ..., "content": ...}')
    asked: dict[str, Any] = {"model": model, "messages": [dict(message) for message in messages], "tools": tools}
    return _with(asked, stream, extra, params)


def text_body(prompt: str | Sequence[Any], model: str, stream: bool, extra: Extra, params: Mapping[str, Any]) -> dict[str, Any]:
    """A text completion."""
    return _with({"model": model, "prompt": prompt}, stream, extra, params)


def _with(asked: dict[str, Any], stream: bool, extra: Extra, params: Mapping[str, Any]) -> dict[str, Any]:
    if stream:
        asked["stream"] = True
    return {**asked, **params, **(extra or {})}


def first_model(answer: Any, url: str) -> str:
    """The first of `/v1/models`. Raises LookupError when there is none."""
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise LookupError(f"{url}: names no model; say which one: model=") from None
