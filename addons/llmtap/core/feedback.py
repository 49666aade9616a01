"""Spool records of what comes after an exchange: ratings, and changes of its tags and metadata.

They go the way of all records (spool, then the one writer), so they are as durable, and a database made again from the archive
has them. `uid` is the exchange's; it may be stored before or after.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from llmtap.core.record import VERSION


@dataclass(frozen=True, slots=True)
class Rating:
    """What somebody says of a reply. One of a name by a source: a later one takes its place.

    `value`: a number, 1 and -1 for thumbs; `string_value`: a word instead. `correction`: the reply that would have been right,
    a message in OpenAI's shape.
    """

    uid: str
    at_us: int
    name: str
    source: str
    value: float | None = None
    string_value: str | None = None
    comment: str | None = None
    correction: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Patch:
    """A change: `tags` take the place of those there are; of `metadata` each key does, None takes it away. None: as it is."""

    uid: str
    at_us: int
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None


def encode(record: Rating | Patch) -> bytes:
    """One line of JSON without the line feed. Raises TypeError for values that are not plain data."""
    kind = "rating" if isinstance(record, Rating) else "patch"
    values = {name: value for name, value in asdict(record).items() if value is not None}
    return orjson.dumps({"v": VERSION, "t": kind, **values})


def merged(metadata: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The metadata after a change: what `change` names is replaced, and removed where it says None."""
    return {key: value for key, value in {**metadata, **change}.items() if value is not None}
