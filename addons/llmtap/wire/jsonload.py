"""JSON as model servers and their clients really send it.

orjson first: fast and strict. What it refuses but Python servers accept (NaN and Infinity, lone surrogates, a byte order
mark, deep nesting) goes to the standard library. Both can only end in a value or a WireError, and no message contains a
piece of the text: it may be somebody's prompt.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from llmtap.core.errors import WireError


class CutShort(WireError):
    """The text is the beginning of a JSON text: the rest never came."""


def loads(data: bytes) -> tuple[Any, bool]:
    """The value, and whether orjson read it: the bytes are then strict UTF-8 JSON, safe to embed in other JSON."""
    try:
        return orjson.loads(data), True
    except orjson.JSONDecodeError as strict:
        return _lenient(data, strict), False


def _lenient(data: bytes, strict: orjson.JSONDecodeError) -> Any:
    if strict.pos >= len(data) or strict.msg.startswith("unexpected end of data"):
        raise CutShort("JSON ends too early") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.end >= len(data) and error.reason == "unexpected end of data":
            raise CutShort("JSON ends too early") from None
        raise WireError(f"not valid UTF-8 at byte {error.start}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated string") or _ends_in(text[error.pos : error.pos + 10]):
            raise CutShort("JSON ends too early") from None
        raise WireError(f"not valid JSON at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise WireError("JSON is nested too deeply") from None
    except ValueError:  # an integer with more digits than Python converts
        raise WireError("JSON contains a number that is too long") from None


def _ends_in(tail: str) -> bool:
    """What is left where reading failed is nothing, or the beginning of a literal or of an escape."""
    return any(literal.startswith(tail) for literal in ("NaN", "Infinity", "-Infinity", "true", "false", "null")) or (
        tail.startswith(("u", "\\u")) and len(tail) < 6
    )


def load_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises WireError for anything else."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as strict:
        value = _lenient(data, strict)
    if type(value) is not dict:
        raise WireError("JSON is not an object")
    return value
