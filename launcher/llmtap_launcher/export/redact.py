"""Takes secrets out of JSON values: out of every text, out of JSON inside texts (arguments of tools), out of numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export import secrets

#: names that stand for a thing of ours or of the protocol, never for what somebody wrote
_LEFT = frozenset(
    "role type id tool_call_id uid custom_id request_id response_id hash finish_reason endpoint method from".split()
)
_DEPTH = 40
_PHONE_NAME = re.compile(r"(?i)(?:^|[_-])(?:phone|telephone|tel|mobile|cell|fax|whatsapp|msisdn)(?:[_-]?(?:number|no|nr))?$")


@dataclass(slots=True)
class Redactor:
    """Replaces secrets by their kind in brackets: `[EMAIL]`. Counts what it replaced. `own`: further patterns by name."""

    kinds: frozenset[str] = frozenset(secrets.KINDS)
    own: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    texts: int = 0

    def value(self, value: Any, name: str = "", depth: int = 0) -> Any:
        """Any JSON value without its secrets; the value itself when it has none. `name`: the key it stands under."""
        kind = type(value)
        if kind is str:
            if name in _LEFT or not value:
                return value
            return self._secret_by_name(value, name) or self._phone_by_name(value, name) or self.text(value, depth)
        if depth > _DEPTH:
            return value
        if kind is dict:
            return {self._key(key): self.value(item, key, depth + 1) for key, item in value.items()}
        if kind is list:
            return [self.value(item, name, depth + 1) for item in value]
        if kind is int and name not in _LEFT:
            return self._number(value, name)
        return value

    def text(self, text: str, depth: int = 0) -> str:
        """A text without its secrets. JSON in it is taken apart, so that no escape hides anything."""
        self.texts += 1
        if text.startswith("data:") and ";base64," in text[:200]:
            return text  # a picture
        if text[:1] in "{[" and depth <= _DEPTH:
            try:
                inside = orjson.loads(text)
            except orjson.JSONDecodeError:
                inside = None
            if type(inside) is dict or type(inside) is list:
                clean = self.value(inside, "", depth + 1)
                return text if clean == inside else orjson.dumps(clean).decode()
        spans = secrets.find(text, self.kinds)
        for name, pattern in self.own.items():
            spans = [*spans, *((found.start(), found.end(), name) for found in pattern.finditer(text) if found[0])]
        return self._replaced(text, secrets.disjoint(spans)) if spans else text

    def _replaced(self, text: str, spans: list[secrets.Span]) -> str:
        out, at = [], 0
        for begin, end, kind in spans:
            out.append(text[at:begin])
            out.append(self._mark(kind))
            at = end
        out.append(text[at:])
        return "".join(out)

    def _mark(self, kind: str) -> str:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return f"[{kind.upper()}]"

    def _key(self, key: str) -> str:
        return self.text(key, _DEPTH + 1) if "@" in key or len(key) > 11 else key

    def _secret_by_name(self, value: str, name: str) -> str | None:
        if not name or "key" not in self.kinds or not secrets.is_secret_name(name) or not secrets.is_set(value):
            return None
        return self._mark("key")

    def _phone_by_name(self, value: str, name: str) -> str | None:
        """Bare figures are a telephone number only where their name says so."""
        if not value[-1:].isdecimal() or "phone" not in self.kinds or not _PHONE_NAME.search(name):
            return None
        return self._mark("phone") if re.fullmatch(r"\+?[0-9]{7,15}", value) else None

    def _number(self, value: int, name: str) -> Any:
        digits = str(value)
        if "card" in self.kinds and 12 <= len(digits) <= 19 and secrets.is_card(digits):
            return self._mark("card")
        if "phone" in self.kinds and 7 <= len(digits) <= 15 and _PHONE_NAME.search(name):
            return self._mark("phone")
        return value


def own_patterns(given: tuple[str, ...]) -> dict[str, re.Pattern[str]]:
    """`NAME=REGEX` of the command line. Raises LlmtapError for what is none."""
    out = {}
    for text in given:
        name, _, pattern = text.partition("=")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or not pattern:
            raise LlmtapError(f"{text!r}: give NAME=REGULAR EXPRESSION, for example badge='B-[0-9]{{6}}'")
        try:
            out[name] = re.compile(pattern)
        except re.error as error:
            raise LlmtapError(f"{name}: {pattern!r} is no regular expression: {error}") from error
    return out
