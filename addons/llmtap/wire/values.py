"""Values out of other people's JSON, taken only when they are what they should be."""

from __future__ import annotations

from typing import Any

import orjson

_MAX_INT = 2**53
_MAX_EXTRA = 4096


def integer(value: Any) -> int | None:
    """A count: an integer from 0 to 2**53, also when written as `12.0`. None for anything else."""
    if type(value) is int:
        return value if 0 <= value <= _MAX_INT else None
    if type(value) is float and value.is_integer():
        return integer(int(value))
    return None


def number(value: Any) -> float | None:
    """A finite number, not a boolean. None for anything else."""
    if type(value) is int:
        return value if -_MAX_INT <= value <= _MAX_INT else None
    # NaN is the one value unequal to itself
    return value if type(value) is float and value == value and abs(value) != float("inf") else None


def clean(text: str) -> str:
    """The text as valid Unicode.

    Servers that escape to ASCII may cut a surrogate pair in two deltas: halves that meet again become their character,
    a half that stays alone becomes U+FFFD.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def string(value: Any) -> str | None:
    """A string as valid Unicode, or None."""
    return clean(value) if type(value) is str else None


def flatten(value: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list of parts. Images and the like give nothing."""
    if type(value) is str:
        return value
    if type(value) is not list:
        return ""
    texts = (part.get("text") if type(part) is dict else part for part in value)
    return "".join(text for text in texts if type(text) is str)


def json_text(value: Any) -> str:
    """Tool arguments as text: a string as it is, anything else as compact JSON; "" for None and what JSON cannot say."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return ""


def extra(value: Any) -> Any:
    """The value when it is plain JSON of at most 4 KiB, else None: extras are kept for reading, never for bulk."""
    try:
        return value if value is not None and len(orjson.dumps(value)) <= _MAX_EXTRA else None
    except TypeError:
        return None
