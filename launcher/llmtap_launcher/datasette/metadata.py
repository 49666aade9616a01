"""`metadata.yml` (titles, canned queries, facets; Datasette's own format) under whatever name the database has.

Datasette names a database after its file, so a copy `backup-may.db` is `/backup-may`; the file speaks of `capture`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FILE = Path(__file__).resolve().parent / "metadata.yml"


@functools.cache
def load() -> dict[str, Any]:
    """The file as plain data."""
    loaded: dict[str, Any] = YAML(typ="safe").load(FILE)
    return loaded


@functools.cache
def for_database(name: str) -> dict[str, Any]:
    """The metadata with the database called `name`. The same object each time: Datasette asks for it many times a page."""
    out = dict(load())
    out["databases"] = {name: out["databases"]["capture"]}
    return out


#: headings shorter than their column
_LABELS = {
    "started_at": "started (UTC)",
    "key_name": "key",
    "prompt_tokens": "tokens in",
    "completion_tokens": "tokens out",
    "tokens_per_second": "tokens/s",
    "finish_reason": "finish",
    "ttft_ms": "first token",
    "error_type": "error",
    "error_message": "message",
    "last_at": "last turn (UTC)",
    "first_at": "began (UTC)",
    "conversation": "",
    "cost_usd": "cost",
    "limit_ms": "at least, ms",
    "b_over_a": "b / a",
    "a": "a",
}
#: columns of the `requests` view that its page leaves out (JSON and CSV have them): the link is at the time, an error's status in
#: the outcome
HIDDEN = ("id", "uid", "stream", "endpoint", "backend", "status")
#: left out when no row of the page has them
OPTIONAL = ("key_name", "model", "reply", "completion_tokens", "ttft_ms", "tokens_per_second", "finish_reason")


def hidden(rows: Iterable[Any]) -> set[str]:
    """What the landing page leaves out: HIDDEN, and of OPTIONAL what no row of the page has (keys, where none are in use)."""
    empty = set(OPTIONAL)
    seen = False
    for row in rows:
        seen = True
        empty = {column for column in empty if row[column] in (None, "")}
    return {*HIDDEN, *(empty if seen else ())}


def label(column: str) -> str:
    """A column name as a heading: `duration_ms` (whose cells carry their unit) becomes `duration`."""
    return _LABELS.get(column) or column.removesuffix("_ms").removesuffix("_bytes").replace("_", " ").strip() or column
