"""Bodies of messages in batches, those that many conversations share (system prompts) remembered."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from llmtap_launcher.store.attachments import restore
from llmtap_launcher.store.canonical import message_of

#: characters of remembered bodies: little enough to stay in the processor's cache
_KEPT_CHARS = 500_000
#: SQLite's limit of parameters is far above
_ASK = 500

#: the row: id, role, text, no JSON
Plain = tuple[Any, ...]
Stored = Plain | dict[str, Any]


class Bodies:
    """Stored messages by the id of their body. They are shared: not to be changed.

    A message that is only a role and a text is a `Plain`, any other a dictionary in OpenAI's shape. `whole`: attachments are
    put back; otherwise the references stay.
    """

    def __init__(self, conn: sqlite3.Connection, *, whole: bool = False) -> None:
        self._conn = conn
        self._whole = whole
        # two generations: what is asked for again moves to the younger, the older is forgotten as a whole
        self._young: dict[int, Stored] = {}
        self._old: dict[int, Stored] = {}
        self._chars = 0

    def load(self, ids: Iterable[int]) -> dict[int, Stored]:
        """The messages of these bodies, and perhaps others. One that is gone is missing."""
        wanted = set(ids)
        if self._chars > _KEPT_CHARS:
            self._old, self._young, self._chars = self._young, {}, 0
        young, old = self._young, self._old
        for ident in wanted & old.keys():
            young[ident] = old.pop(ident)
        ask = sorted(wanted - young.keys())  # in the order they lie in the file
        chars = 0
        for row in rows(self._conn, "id, role, text, json", "bodies", "id", ask):
            ident, role, text, json = row
            if json is None and text is not None:
                young[ident] = row
                chars += len(text)
                continue
            if role == "tools":
                continue  # definitions, which lie between the messages
            message = message_of(role, text, json)
            if self._whole and json is not None and "attachment:" in json:
                message = restore(message, self._content(ident))
            young[ident] = message
            chars += len(text or "") + len(json or "")
        self._chars += chars
        return young

    def _content(self, body: int) -> Callable[[bytes], bytes | None]:
        def load(hashed: bytes) -> bytes | None:
            # only what this very message had: a text may say anything, also what looks like a reference
            found = self._conn.execute(
                "SELECT a.content FROM attachments a JOIN body_attachments b ON b.hash = a.hash WHERE b.body_id = ? "
                "AND a.hash = ?",
                (body, hashed),
            ).fetchone()
            return None if found is None else bytes(found[0])

        return load


def role_of(stored: Stored | None) -> str | None:
    """The role of a message, if there is one."""
    if stored is None:
        return None
    role: str = stored[1] if isinstance(stored, tuple) else stored["role"]
    return role


def as_message(stored: Stored) -> dict[str, Any]:
    """In OpenAI's shape. Not to be changed."""
    return {"role": stored[1], "content": stored[2]} if isinstance(stored, tuple) else stored


def rows(conn: sqlite3.Connection, columns: str, table: str, key: str, values: list[Any]) -> Iterable[tuple[Any, ...]]:
    """Plain tuples of the rows whose `key` is one of `values`, some hundreds at a time. Of ids in order that lie close
    together the whole stretch may come, which is read faster than one after the other."""
    cursor = conn.cursor()
    cursor.row_factory = None
    if len(values) > 8 and type(values[0]) is int and 0 <= values[-1] - values[0] < len(values) * 3 // 2:
        yield from cursor.execute(f"SELECT {columns} FROM {table} WHERE {key} BETWEEN ? AND ?", (values[0], values[-1]))
        return
    for at in range(0, len(values), _ASK):
        some = values[at : at + _ASK]
        yield from cursor.execute(f"SELECT {columns} FROM {table} WHERE {key} IN ({','.join('?' * len(some))})", some)
