"""The model's name in a request, changed where a backend knows the model under another one. Nothing else changes."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(strict=False)


def with_model(body: bytes, name: str) -> bytes:
    """The JSON object in `body` with the value of its member `model` replaced (of each, should there be several); every other
    character stays. What is no JSON object, or names no model, comes back as it is."""
    try:
        text = body.decode("utf-8-sig", "surrogatepass")
        places = list(_places(text))
    except (ValueError, IndexError, StopIteration, RecursionError):
        return body
    value = json.dumps(name, ensure_ascii=False)
    for start, end in reversed(places):
        text = text[:start] + value + text[end:]
    return text.encode("utf-8", "surrogatepass") if places else body


def _places(text: str) -> list[tuple[int, int]]:
    """Where the values of the top-level members `model` begin and end. Raises ValueError, IndexError or StopIteration."""
    places: list[tuple[int, int]] = []
    at = _skip(text, 0)
    if text[at] != "{":
        return []
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError
        start = _skip(text, at + 1)
        _, end = _DECODER.raw_decode(text, start)
        if key == "model":
            places.append((start, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return places


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found is not None else at


def with_query_model(target: str, name: str) -> str:
    """A request target with the value of `model` in its query replaced; as it is where the query has none."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    pairs = query.split("&")
    return f"{path}?" + "&".join(f"model={quote(name, safe='')}" if p.partition("=")[0] == "model" else p for p in pairs)
