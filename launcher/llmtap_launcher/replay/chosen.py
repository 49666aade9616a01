"""Which captured requests are sent again, and what is changed in them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmtap_launcher.export.options import Wanted
from llmtap_launcher.export.query import where
from llmtap_launcher.store.request_of import request_of

TAG = "replay"
#: requests that are stored as messages or a prompt
ENDPOINTS = ("chat", "completions", "messages", "responses", "ollama_chat", "ollama_generate")
_TAGGED = "EXISTS (SELECT 1 FROM json_each(e.tags) t WHERE t.value = {})"
_MADE = (
    "SELECT coalesce(json_extract(e.metadata_json, '$.replay_of'), '') FROM exchanges e "
    f"WHERE e.tags IS NOT NULL AND {_TAGGED.format(':run_tag')} AND e.outcome IN ('ok', 'cached')"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A captured request: `body` without `model` changes is what the client sent."""

    uid: str
    endpoint: str  # chat or completions: what it is sent again as
    body: dict[str, Any]


def run_tag(run: str) -> str:
    """The tag of a run's replies."""
    return f"{TAG}:{run}"


def chosen(conn: sqlite3.Connection, wanted: Wanted, run: str, limit: int | None) -> list[str]:
    """Uids of the newest `limit` exchanges that are wanted, the oldest first; without those whose reply this run has, and without
    replays (unless a tag of theirs is asked for). Raises LlmtapError for what cannot be understood."""
    condition, values = where(conn, wanted)
    parts = [condition, "e.input_tip IS NOT NULL", f"e.uid NOT IN ({_MADE})"]
    if not any(tag.startswith(TAG) for tag in wanted.selection.tags):
        parts.append(f"NOT {_TAGGED.format(':replay_tag')}")
    values |= {"run_tag": run_tag(run), "replay_tag": TAG, "most": -1 if limit is None else limit}
    found = conn.execute(
        f"SELECT e.uid FROM exchanges e WHERE {' AND '.join(parts)} ORDER BY e.started_at DESC, e.id DESC LIMIT :most", values
    )
    return [row[0] for row in found][::-1]


def requests(conn: sqlite3.Connection, uids: list[str], changes: Mapping[str, Any]) -> Iterator[Asked | None]:
    """The requests with `changes` made (a value of None takes a member away); None for one that is not stored any more."""
    for uid in uids:
        body = request_of(conn, uid)
        if body is None:
            yield None
            continue
        body |= changes
        body = {name: value for name, value in body.items() if value is not None}
        yield Asked(uid, "completions" if "prompt" in body else "chat", body)
