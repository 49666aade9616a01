"""Which exchanges a command is about: spans of time, models, keys, backends and tags, as SQL over `exchanges`.

A name may have the wildcards of SQLite's GLOB (`*`, `?`, `[…]`). Several names of one kind mean any of them, several tags all
of them; kinds add up. The empty name stands for none (`--key ''`: requests without a key).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from llmtap.core.errors import LlmtapError

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WILD = re.compile(r"[*?\[]")


class SelectionError(LlmtapError):
    """A selection nobody can understand. One line: what was given and what may be."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection of exchanges. `since` (inclusive) and `until` (exclusive) are moments as `exchanges.started_at` has them
    (`parse_moment` makes them); None: no limit. `uids`: only these exchanges; None: not only some."""

    since: str | None = None
    until: str | None = None
    models: Sequence[str] = ()
    keys: Sequence[str] = ()
    backends: Sequence[str] = ()
    tags: Sequence[str] = ()
    uids: Sequence[str] | None = None

    def where(self, table: str = "e", prefix: str = "sel") -> tuple[str, dict[str, Any]]:
        """An SQL condition over `exchanges` under the name `table`, and its named parameters (each begins with `prefix`).

        `model` is the served name, as everywhere in the database (`exchanges.model`)."""
        parts: list[str] = []
        values: dict[str, Any] = {}

        def bound(value: str) -> str:
            name = f"{prefix}{len(values)}"
            values[name] = value
            return f":{name}"

        if self.since is not None:
            parts.append(f"{table}.started_at >= {bound(self.since)}")
        if self.until is not None:
            parts.append(f"{table}.started_at < {bound(self.until)}")
        for column, names in (("model", self.models), ("key_name", self.keys), ("backend", self.backends)):
            if names:
                parts.append(_any_of(f"{table}.{column}", names, bound))
        if self.tags:
            parts.append(f"{table}.tags IS NOT NULL")  # there is an index of those that have any
        for tag in self.tags:
            parts.append(f"EXISTS (SELECT 1 FROM json_each({table}.tags) tag WHERE tag.value {_compared(tag)} {bound(tag)})")
        if self.uids is not None:
            parts.append(f"{table}.uid IN (SELECT value FROM json_each({bound(json.dumps(list(self.uids)))}))")
        return " AND ".join(parts) or "1", values

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not (self.since or self.until or self.models or self.keys or self.backends or self.by_row)

    @property
    def by_row(self) -> bool:
        """Whether only the rows of exchanges can tell what belongs to it: statistics do not know tags, or exchanges."""
        return bool(self.tags) or self.uids is not None


def _any_of(column: str, names: Sequence[str], bound: Any) -> str:
    exact = [name for name in names if name and not _WILD.search(name)]
    parts = [f"{column} GLOB {bound(name)}" for name in names if _WILD.search(name)]
    if exact:
        parts.append(f"{column} IN ({', '.join(bound(name) for name in exact)})")
    if "" in names:
        parts.append(f"({column} IS NULL OR {column} = '')")
    return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"


def _compared(name: str) -> str:
    return "GLOB" if _WILD.search(name) else "="


def parse_moment(text: str, now: datetime | None = None) -> str:
    """A moment as a person writes it, as `exchanges.started_at` has it: `2h` (ago; s, m, h, d, w), `now`, `today`, `yesterday`,
    `2026-11-01`, `2026-11-01T09:30`, with a zone or in UTC. A date alone is its first moment. Raises SelectionError."""
    now = (now or datetime.now(UTC)).astimezone(UTC)
    words = text.strip()
    days = {"today": 0, "yesterday": 1}.get(words.lower())
    try:
        if ago := _AGO.fullmatch(words.lower()):
            at = now - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        elif words.lower() == "now":
            at = now
        elif days is not None:
            at = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days)
        else:
            at = datetime.fromisoformat(words)
            at = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise SelectionError(
            f"{text!r} is no time: give an age (90s, 30m, 2h, 7d, 4w), a date (2026-11-01), a moment (2026-11-01T09:30, UTC "
            "unless it has a zone), today, yesterday or now"
        ) from None
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
