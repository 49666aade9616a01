"""What the operator makes of a request: parameters set, taken out and capped, a system prompt put in front, texts redacted. Pure.

One filter is an entry of `filters` in the configuration. Its parts are applied in the order of this page; the filters one after
the other, each to what the one before has made of the request.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

#: members that hold what people have written
_TEXTS = ("messages", "prompt", "input", "system", "instructions", "suffix", "query", "documents", "texts", "text_1", "text_2")
#: how an endpoint calls the most tokens it may generate: the names it knows, the one that is added first
_LIMITS: dict[str, tuple[str, ...]] = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "messages": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
_OLLAMA = ("ollama_chat", "ollama_generate")


@dataclass(frozen=True, slots=True)
class Filter:
    """`models` are patterns (* and ?), `keys` names, `endpoints` names as in metrics; None: all. `hook`: a rule in Python."""

    models: tuple[str, ...] | None = None
    keys: frozenset[str] | None = None
    endpoints: frozenset[str] | None = None
    strip: tuple[str, ...] = ()
    set: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    system_prompt: str | None = None
    redact: tuple[tuple[re.Pattern[str], str], ...] = ()
    hook: Callable[..., Any] | None = None

    def fits(self, model: str | None, key: str | None, endpoint: str) -> bool:
        """Whether it is for this request."""
        if self.models is not None and not (model is not None and any(fnmatchcase(model, glob) for glob in self.models)):
            return False
        if self.keys is not None and key not in self.keys:
            return False
        return self.endpoints is None or endpoint in self.endpoints

    def apply(self, endpoint: str, obj: dict[str, Any]) -> dict[str, Any]:
        """The request after this filter (but for its hook); `obj` stays as it was."""
        out = dict(obj)
        for name in self.strip:
            out.pop(name, None)
        if self.set:
            out.update(copy.deepcopy(dict(self.set)))
        if self.max_tokens is not None:
            _cap(endpoint, out, self.max_tokens)
        if self.system_prompt is not None:
            _instruct(endpoint, out, self.system_prompt)
        if self.redact:
            for name in _TEXTS:
                if name in out:
                    out[name] = redacted(out[name], self.redact)
        return out


def _cap(endpoint: str, obj: dict[str, Any], most: int) -> None:
    if endpoint in _OLLAMA:
        options = dict(obj.get("options") or {})
        asked = options.get("num_predict")
        options["num_predict"] = asked if type(asked) is int and 0 <= asked <= most else most
        obj["options"] = options
        return
    names = _LIMITS.get(endpoint)
    if names is None:
        return
    given = [name for name in names if obj.get(name) is not None]
    for name in given:
        if type(obj[name]) in (int, float) and obj[name] > most:
            obj[name] = most
    if not given:
        obj[names[0]] = most


def _instruct(endpoint: str, obj: dict[str, Any], text: str) -> None:
    """The operator's words come first, before the client's own: many chat templates take one system message only."""
    if endpoint in ("chat", "ollama_chat"):
        messages = obj.get("messages")
        if type(messages) is not list:
            return
        first = messages[0] if messages and type(messages[0]) is dict else {}
        if first.get("role") in ("system", "developer"):
            obj["messages"] = [{**first, "content": _before(text, first.get("content"))}, *messages[1:]]
        else:
            obj["messages"] = [{"role": "system", "content": text}, *messages]
    elif endpoint in ("messages", "ollama_generate"):
        obj["system"] = _before(text, obj.get("system"))
    elif endpoint == "responses":
        obj["instructions"] = _before(text, obj.get("instructions"))


def _before(text: str, own: Any) -> Any:
    if type(own) is str and own:
        return f"{text}\n\n{own}"
    if type(own) is list:
        return [{"type": "text", "text": text}, *own]
    return text


def redacted(value: Any, patterns: Sequence[tuple[re.Pattern[str], str]]) -> Any:
    """The same with every match of the patterns replaced in every text, at any depth. Data URLs (images) are left alone."""
    if type(value) is str:
        if not value.startswith("data:"):
            for pattern, replacement in patterns:
                value = pattern.sub(replacement, value)
        return value
    if type(value) is list:
        return [redacted(item, patterns) for item in value]
    if type(value) is dict:
        return {name: redacted(item, patterns) if name not in ("role", "type") else item for name, item in value.items()}
    return value
