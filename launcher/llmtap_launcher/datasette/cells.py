"""Table cells for reading, chosen by column name: durations with units, linked times, badges, highlighted snippets.

Only HTML pages pass through here; JSON and CSV carry the stored values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from llmtap_launcher.datasette.formats import dollars, duration, number, size, when

#: what the `search` query puts around a hit: characters that text does not contain and that mean nothing if it does
MARK_START, MARK_END = "\x02", "\x03"
_ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
_COUNTS = frozenset(
    "prompt_tokens completion_tokens cached_tokens reasoning_tokens n_messages chunks requests errors "
    "tokens_per_second turns a b".split()
)
_SAID_CHARS = 100
_OK = {"ok", "cached"}
_MILD = {"open", "client_abort"}


def transcript_path(uid: str) -> str:
    """The page of one exchange (below Datasette's base_url)."""
    return f"/-/transcript/{quote(uid, safe='')}"


def conversation_path(number: int) -> str:
    """The page of a conversation (below Datasette's base_url)."""
    return f"/-/conversation/{number}"


def badge(outcome: str, code: Any = None) -> Markup:
    """An outcome (ok, cached, open, client_abort, upstream_error, timeout, rejected, lost), coloured, errors with status."""
    tone = "good" if outcome in _OK else "mild" if outcome in _MILD else "bad"
    failed = isinstance(code, int) and code >= 400
    words = f"{outcome.replace('_', ' ')} {code}" if failed else outcome.replace("_", " ")
    return Markup('<span class="badge {}">{}</span>').format("bad" if failed and tone == "good" else tone, words)


def status(code: int) -> Markup:
    """An HTTP status, coloured when it is an error."""
    return Markup('<span class="status {}">{}</span>').format("bad" if code >= 400 else "good", code)


def time(value: str) -> Markup:
    """A `<time>`; the reader sees UTC to the second, the stored value is in the attribute."""
    return Markup('<time datetime="{}" title="{}">{}</time>').format(value, value, when(value))


def snippet(text: str) -> Markup:
    """Escaped text in which the marks of the `search` query became `<mark>`."""
    shown = escape(text).replace(MARK_START, Markup("<mark>")).replace(MARK_END, Markup("</mark>"))
    balance = str(shown).count("<mark>") - str(shown).count("</mark>")
    return shown + Markup("</mark>") * max(balance, 0)


def _of(row: Any, column: str) -> Any:
    """A column of a row (sqlite3.Row or Datasette's own class), None when the query did not select it."""
    try:
        return row[column]
    except (KeyError, IndexError):
        return None


def _milliseconds(column: str) -> bool:
    return column.endswith("_ms")


def cell(column: str, value: Any, row: Any, path: Callable[[str], str]) -> Markup | None:
    """The HTML of one cell, or None to leave it to Datasette. `path` puts base_url before a path."""
    if value is None or value == "" or isinstance(value, bytes):
        return None
    if isinstance(value, str):
        return _text_cell(column, value, row, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if _milliseconds(column):
        return Markup('<span title="{} ms">{}</span>').format(value, duration(value))
    if column == "status":
        return status(int(value))
    if column == "cost_usd":
        return Markup("{}").format(dollars(value))
    if column in ("conversation", "conversation_id") and isinstance(value, int):
        return Markup('<a href="{}">{}</a>').format(path(conversation_path(value)), value)
    if column.endswith("_bytes"):
        return Markup('<span title="{} bytes">{}</span>').format(value, size(value))
    if column in _COUNTS:
        return Markup("{}").format(number(value))
    return None


def _text_cell(column: str, value: str, row: Any, path: Callable[[str], str]) -> Markup | None:
    uid = _of(row, "uid")
    if column in ("started_at", "hour", "first_at", "last_at"):
        if column == "last_at" and isinstance(talk := _of(row, "conversation"), int):
            return Markup('<a href="{}">{}</a>').format(path(conversation_path(talk)), time(value))
        shown = time(value) if column != "hour" else Markup("{}").format(value)
        if column == "started_at" and isinstance(uid, str) and uid:
            return Markup('<a href="{}">{}</a>').format(path(transcript_path(uid)), shown)
        return shown
    if column == "uid" and _ULID.fullmatch(value):
        # a ULID begins with its time, so two neighbours differ at the end
        return Markup('<a class="uid" href="{}" title="{}">…{}</a>').format(path(transcript_path(value)), value, value[-6:])
    if column == "outcome":
        return badge(value, _of(row, "status"))
    if column in ("prompt", "reply"):
        # one line of a table: what does not fit would only weigh
        return Markup("{}").format(value if len(value) <= _SAID_CHARS else value[:_SAID_CHARS] + "…")
    if column == "snippet":
        return Markup('<div class="snippet" dir="auto">{}</div>').format(snippet(value))
    if column == "role":
        return Markup('<span class="role">{}</span>').format(value)
    return None
