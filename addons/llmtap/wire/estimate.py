"""How many tokens a prompt has when the reply that would have said so never came to its end.

An aborted stream of vLLM has told nothing of its prompt. What finished replies of the same model said teaches a line through
what can be counted here: tokens = per request + per message x messages + per byte x bytes of text + tools + bytes of tools.
It is fitted by recursive least squares, so a few numbers a model are all that is kept, and a model met for the first time
begins with values common to chat templates and English text. Prompts given as token ids are simply counted.

For prompts of some hundred bytes the estimate is a few tokens off; usage that contains it is marked `estimated`.
"""

from __future__ import annotations

from typing import Any

from llmtap.wire.request import ParsedRequest
from llmtap.wire.values import flatten, json_text

#: what models use on average: a little for the template, about four bytes a token
_PRIOR = (3.0, 4.0, 0.26, 100.0, 0.25)
#: how far these may be off (standard deviations)
_DOUBT = (3.0, 2.0, 0.08, 60.0, 0.1)
_FORGET = 0.995
#: models and endpoints that are kept apart
_MAX_LINES = 256
#: all of a model's first replies teach, then one in so many
_ALL_OF_THE_FIRST = 64
_ONE_IN = 64

Features = tuple[float, float, float, float, float]


class PromptEstimator:
    """`learn` from replies that told their usage, `guess` for those that did not."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str | None], _Line] = {}

    def learn(self, parsed: ParsedRequest, tokens: int) -> None:
        """`tokens`: what the backend counted for the prompt of this request."""
        key = parsed.endpoint, parsed.model
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= _MAX_LINES:
                return
            line = self._lines[key] = _Line()
        line.seen += 1
        if line.seen <= _ALL_OF_THE_FIRST or line.seen % _ONE_IN == 0:
            found = _features(parsed.obj)
            if isinstance(found, tuple):
                line.learn(found, tokens)

    def guess(self, parsed: ParsedRequest) -> int | None:
        """Tokens of the prompt; None when there is no prompt that could be read."""
        found = _features(parsed.obj)
        if found is None or isinstance(found, int):
            return found
        line = self._lines.get((parsed.endpoint, parsed.model)) or _Line()
        return max(1, round(line.at(found)))


class _Line:
    __slots__ = ("_covariance", "_weights", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self._weights = list(_PRIOR)
        self._covariance = [[_DOUBT[i] ** 2 if i == j else 0.0 for j in range(5)] for i in range(5)]

    def at(self, x: Features) -> float:
        return sum(weight * value for weight, value in zip(self._weights, x, strict=True))

    def learn(self, x: Features, tokens: int) -> None:
        """One step of recursive least squares; a long prompt may be further off than a short one."""
        noise = _FORGET * (1.0 + (0.05 * tokens) ** 2)
        gain = [sum(c * value for c, value in zip(row, x, strict=True)) for row in self._covariance]
        scale = noise + sum(g * value for g, value in zip(gain, x, strict=True))
        off = (tokens - self.at(x)) / scale
        self._weights = [weight + g * off for weight, g in zip(self._weights, gain, strict=True)]
        self._covariance = [[(self._covariance[i][j] - gain[i] * gain[j] / scale) / _FORGET for j in range(5)] for i in range(5)]


def _features(obj: dict[str, Any]) -> Features | int | None:
    """What the line is made of; the count itself when the prompt is token ids; None without a prompt."""
    messages = obj.get("messages")
    size = parts = 0
    if type(messages) is list:
        for message in messages:
            if type(message) is dict:
                size += len(flatten(message.get("content")).encode("utf-8", "replace"))
                calls = message.get("tool_calls")
                if calls:
                    size += len(json_text(calls))
                parts += 1
    else:
        prompt = obj.get("prompt", obj.get("input"))
        if type(prompt) is str:
            prompt = [prompt]
        if type(prompt) is not list or not prompt:
            return None
        ids = _token_ids(prompt)
        if ids is not None:
            return ids
        for item in prompt:
            size += len(flatten(item.get("content") if type(item) is dict else item).encode("utf-8", "replace"))
            parts += 1
    for name in ("system", "instructions"):
        given = obj.get(name)
        if given:
            size += len(flatten(given).encode("utf-8", "replace"))
            parts += 1
    tools = obj.get("tools")
    described = len(json_text(tools)) if tools else 0
    return 1.0, float(parts), float(size), 1.0 if described else 0.0, float(described)


def _token_ids(prompt: list[Any]) -> int | None:
    if all(type(item) is int for item in prompt):
        return len(prompt)
    if all(type(item) is list and all(type(token) is int for token in item) for item in prompt):
        return sum(map(len, prompt))
    return None
