"""Who wrote the assistant's turns of a history: a client may send replies that no backend of ours ever gave.

A turn is ours when it is the reply of an exchange (also another choice of it, or what a person corrected it to), or the same
up to white space, for clients that trim what they send back.
"""

from __future__ import annotations

import sqlite3

from llmtap_launcher.export.paths import Paths
from llmtap_launcher.export.stored import rows
from llmtap_launcher.store.canonical import Body, asked_words, loose

_REMEMBERED = 100_000


class Provenance:
    """Whose the assistant's turns are. `replies`: bits of messages known to be replies, to save asking for most."""

    def __init__(self, conn: sqlite3.Connection, paths: Paths, replies: bytearray) -> None:
        self._conn = conn
        self._paths = paths
        self._replies = replies
        self._foreign: set[int] = set()

    def foreign(self, message: int) -> bool:
        """Whether nobody of ours said this message."""
        at, bit = message >> 3, 1 << (message & 7)
        if self._replies[at] & bit:
            return False
        if message in self._foreign:
            return True
        found = self._conn.execute(
            "SELECT 1 FROM messages m WHERE m.id = ? AND EXISTS (SELECT 1 FROM exchanges e WHERE e.output_tip = m.hash)",
            (message,),
        ).fetchone()
        if found is not None or _otherwise(self._conn, self._paths, message):
            self._replies[at] |= bit
            return False
        if len(self._foreign) > _REMEMBERED:
            self._foreign.clear()
        self._foreign.add(message)
        return True


def _otherwise(conn: sqlite3.Connection, paths: Paths, message: int) -> bool:
    """Whether a message that is nobody's reply is ours all the same."""
    cursor = conn.cursor()
    cursor.row_factory = None
    hashed, parent = cursor.execute(
        "SELECT m.hash, p.hash FROM messages m LEFT JOIN messages p ON p.id = m.parent_id WHERE m.id = ?", (message,)
    ).fetchone()
    if cursor.execute("SELECT 1 FROM ratings WHERE correction = ? LIMIT 1", (hashed,)).fetchone():
        return True
    if parent is None:
        return False
    if cursor.execute(
        "SELECT 1 FROM exchanges WHERE input_tip = ? AND instr(response_meta_json, ?) LIMIT 1", (parent, hashed.hex())
    ).fetchone():
        return True
    _, path = paths.to(message)
    # of the messages before the reply only the first and the last count, and how many there are
    first, last, reply = _bodies(conn, [path[0], path[-2], path[-1]])
    words = loose(asked_words([first, *[last] * (len(path) - 2)]), reply)
    return cursor.execute("SELECT 1 FROM exchanges WHERE loose_tip = ? LIMIT 1", (words,)).fetchone() is not None


def _bodies(conn: sqlite3.Connection, ids: list[int]) -> list[Body]:
    found = {ident: Body(*values) for ident, *values in rows(conn, "id, hash, role, text, json", "bodies", "id", ids)}
    return [found[ident] for ident in ids]
