"""What two sides a comparison has: `llmtap compare A B`, each a model, backend, key, tag or span of time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from llmtap_launcher.selection import Selection, SelectionError, parse_moment

_KINDS = ("model", "backend", "key", "tag")


@dataclass(frozen=True, slots=True)
class Side:
    """One side: how it is called, and what it selects."""

    name: str
    selection: Selection


def side(text: str, base: Selection, now: datetime | None = None) -> Side:
    """A side as a person writes it: `model:NAME` (or only the name), `backend:NAME`, `key:NAME`, `tag:NAME`, `FROM..TO` (either
    may be missing; times as in `--since`). `base` narrows it further. Raises SelectionError."""
    kind, colon, name = text.partition(":")
    if colon and kind in _KINDS and (name or kind == "key"):
        if kind == "model":
            return Side(text, replace(base, models=(name,)))
        if kind == "backend":
            return Side(text, replace(base, backends=(name,)))
        return Side(text, replace(base, keys=(name,)) if kind == "key" else replace(base, tags=(*base.tags, name)))
    since, dots, until = text.partition("..")
    if dots:
        return _span(text, since.strip(), until.strip(), base, now)
    if not text.strip():
        raise SelectionError(
            "a side of a comparison is a model, backend:NAME, key:NAME, tag:NAME, or a span of time: 2026-11-01..2026-11-08, 7d.."
        )
    return Side(text, replace(base, models=(text,)))


def _span(text: str, since: str, until: str, base: Selection, now: datetime | None) -> Side:
    first = parse_moment(since, now) if since else base.since
    last = parse_moment(until, now) if until else base.until
    if not since and not until:
        raise SelectionError(f"{text!r}: a span has a beginning or an end: 2026-11-01..2026-11-08, 7d..")
    if first is not None and last is not None and first >= last:
        raise SelectionError(f"{text!r}: the span ends before it begins")
    return Side(text, replace(base, since=first, until=last))
