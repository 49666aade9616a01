"""Several requests as one, and its reply as several. Pure.

    embeddings    input: a text, its token ids, or a list of these
    completions   prompt: the same
    chat          messages: the whole conversation (for vLLM's /v1/chat/completions/batch)

Requests go together that are equal in everything else. The same text is sent once, however often it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import orjson

from llmtap.policy.cache_key import IGNORED

Kind = Literal["texts", "tokens", "talks"]
#: endpoint → the member that holds what is asked, and where the request as one goes
ITEMS = {"embeddings": "input", "completions": "prompt", "chat": "messages"}
PATHS = {"chat": "/v1/chat/completions/batch"}


@dataclass(frozen=True, slots=True)
class Part:
    """One request: `group` is the same for all that may go together. `items`: what it asks, each as JSON."""

    group: bytes
    items: tuple[bytes, ...]


def part_of(endpoint: str, path: str, obj: dict[str, Any], most: int) -> Part | None:
    """A request as part of a batch of at most `most` items; None when it has to go alone."""
    member = ITEMS.get(endpoint)
    if member is None or obj.get("stream") or (endpoint == "chat" and obj.get("n") not in (None, 1)):
        return None
    split = _items(endpoint, obj.get(member))
    if split is None or not 0 < len(split[1]) < most:
        return None
    rest = {name: value for name, value in obj.items() if name != member and name not in IGNORED}
    try:
        group = orjson.dumps([path, split[0], rest], option=orjson.OPT_SORT_KEYS)
        return Part(sha256(group).digest(), tuple(orjson.dumps(item, option=orjson.OPT_SORT_KEYS) for item in split[1]))
    except TypeError:
        return None


def _items(endpoint: str, value: Any) -> tuple[Kind, list[Any]] | None:
    if endpoint == "chat":
        return ("talks", [value]) if type(value) is list and value else None
    if type(value) is str:
        return "texts", [value]
    if type(value) is not list or not value:
        return None
    if all(type(item) is str for item in value):
        return "texts", value
    if all(type(item) is int for item in value):
        return "tokens", [value]
    if all(type(item) is list and item and all(type(token) is int for token in item) for item in value):
        return "tokens", value
    return None


def combine(endpoint: str, obj: dict[str, Any], parts: list[Part]) -> tuple[bytes, dict[bytes, int]]:
    """One body for all parts (`obj`: any one of the requests), and where in it each item is."""
    places: dict[bytes, int] = {}
    for part in parts:
        for item in part.items:
            places.setdefault(item, len(places))
    rest = {name: value for name, value in obj.items() if name != ITEMS[endpoint] and name not in IGNORED}
    return orjson.dumps({**rest, ITEMS[endpoint]: [orjson.Fragment(item) for item in places]}), places


class Unsplittable(Exception):
    """The reply is not what was expected."""


class Reply:
    """The reply to a combined request."""

    def __init__(self, endpoint: str, body: bytes, places: dict[bytes, int]) -> None:
        """Raises Unsplittable."""
        self._endpoint = endpoint
        self._places = places
        self._member = "data" if endpoint == "embeddings" else "choices"
        try:
            self._whole: dict[str, Any] = orjson.loads(body)
            self._by_item = self._sorted(self._whole[self._member], len(places))
        except (ValueError, LookupError, TypeError) as error:
            raise Unsplittable from error
        usage = self._whole.get("usage")
        self._usage = usage if type(usage) is dict else None
        items = list(places)
        self._prompts = self._share("prompt_tokens", [_weight(item) for item in items])
        self._completions = self._share("completion_tokens", [sum(map(_spoken, found)) for found in self._by_item])

    @staticmethod
    def _sorted(entries: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
        """The entries of each item: one of embeddings, `n` of completions."""
        per_item, rest = divmod(len(entries), count)
        if rest or not per_item:
            raise Unsplittable
        found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        for entry in sorted(entries, key=lambda entry: entry["index"]):
            found[entry["index"] // per_item].append(entry)
        if any(len(entries) != per_item for entries in found):
            raise Unsplittable
        return found

    def _share(self, name: str, weights: list[int]) -> list[int] | None:
        """A count of the usage, divided among the items by their weights; the parts add up to it."""
        total = self._usage.get(name) if self._usage is not None else None
        if type(total) is not int:
            return None
        weight, out, given, seen = sum(weights) or len(weights), [], 0, 0
        for own in weights if sum(weights) else [1] * len(weights):
            seen += own
            share = round(total * seen / weight) - given
            given += share
            out.append(share)
        return out

    def part(self, part: Part) -> bytes:
        """The reply to one of the requests."""
        places = [self._places[item] for item in part.items]
        entries = [entry for place in places for entry in self._by_item[place]]
        reply = {**self._whole, self._member: [{**entry, "index": n} for n, entry in enumerate(entries)]}
        if self._usage is not None:
            usage = dict(self._usage)
            for name, shares in (("prompt_tokens", self._prompts), ("completion_tokens", self._completions)):
                if shares is not None:
                    usage[name] = sum(shares[place] for place in places)
            if "total_tokens" in usage:
                usage["total_tokens"] = (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)
            reply["usage"] = usage
        return orjson.dumps(reply)


def _weight(item: bytes) -> int:
    """How long a prompt is: its token ids where they are given, else its bytes."""
    return item.count(b",") + 1 if item.startswith(b"[") and not item.startswith(b"[{") else len(item)


def _spoken(entry: dict[str, Any]) -> int:
    """How long a choice is, about."""
    message = entry.get("message")
    text = entry.get("text") if type(message) is not dict else message.get("content")
    return len(text) if type(text) is str else 0
