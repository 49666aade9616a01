"""The message chain in the database: each message once, pointing to the one before it.

Remembers the ids of what it stored (a conversation comes back with every turn), so `forget` it after a rollback.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from llmtap_launcher.store.attachments import Attachment
from llmtap_launcher.store.canonical import Body, link

#: hashes remembered per table: some 10 MB, enough for a thousand conversations under way
_REMEMBERED = 50_000


class Chains:
    """Writes bodies and messages through one connection, in the caller's transaction."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._bodies: dict[bytes, int] = {}
        self._messages: dict[bytes, tuple[int, int]] = {}  # hash: id, depth

    def forget(self) -> None:
        """Ids may be gone: after a rollback, after a prune."""
        self._bodies.clear()
        self._messages.clear()

    def extend(self, parent: bytes | None, bodies: Sequence[Body]) -> bytes | None:
        """Stores `bodies` behind the message with hash `parent` (None: at the root). Returns the hash of the last one."""
        hashes, _ = self.link_all(parent, bodies)
        return hashes[-1] if hashes else parent

    def link_all(self, parent: bytes | None, bodies: Sequence[Body]) -> tuple[list[bytes], int]:
        """As `extend`; returns the hashes of all of them, and how many of them (from the first) were stored before."""
        hashes = [parent or b""]
        for body in bodies:
            hashes.append(link(hashes[-1], body.hash))
        # a conversation that goes on is known up to its last turn: look from the end
        at, found = len(hashes) - 1, None
        while at >= 0 and hashes[at] and (found := self._message(hashes[at])) is None:
            at -= 1
        if found is None:
            at = 0
        parent_id, depth = found if found is not None else (None, -1)
        for index in range(at, len(bodies)):
            depth += 1
            body_id, _ = self.put(bodies[index])
            cursor = self._conn.execute(
                "INSERT INTO messages(hash, parent_id, depth, body_id) VALUES (?, ?, ?, ?)",
                (hashes[index + 1], parent_id, depth, body_id),
            )
            parent_id = cursor.lastrowid
            assert parent_id is not None
            self._messages[hashes[index + 1]] = (parent_id, depth)
        _trim(self._messages)
        return hashes[1:], at

    def put(self, body: Body) -> tuple[int, bool]:
        """The id of a body, and whether it is new."""
        known = self._bodies.get(body.hash)
        if known is not None:
            return known, False
        cursor = self._conn.execute(
            "INSERT INTO bodies(hash, role, text, json, bytes) VALUES (?, ?, ?, ?, ?) ON CONFLICT(hash) DO NOTHING",
            (body.hash, body.role, body.text, body.json, body.size),
        )
        created = cursor.rowcount == 1
        if created:
            assert cursor.lastrowid is not None
            body_id = cursor.lastrowid
            for it in body.attachments:
                self._attach(body_id, it)
        else:
            (body_id,) = self._conn.execute("SELECT id FROM bodies WHERE hash = ?", (body.hash,)).fetchone()
        self._bodies[body.hash] = body_id
        _trim(self._bodies)
        return body_id, created

    def _attach(self, body_id: int, it: Attachment) -> None:
        self._conn.execute(
            "INSERT INTO attachments(hash, mime, bytes, content) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (it.hash, it.mime, len(it.content), it.content),
        )
        self._conn.execute("INSERT INTO body_attachments VALUES (?, ?) ON CONFLICT DO NOTHING", (body_id, it.hash))

    def _message(self, hashed: bytes) -> tuple[int, int] | None:
        known = self._messages.get(hashed)
        if known is None:
            row = self._conn.execute("SELECT id, depth FROM messages WHERE hash = ?", (hashed,)).fetchone()
            if row is None:
                return None
            known = self._messages[hashed] = (row[0], row[1])
        return known


def _trim[T](remembered: dict[bytes, T]) -> None:
    """Forgets the older half of what is too much (dicts keep their order)."""
    if len(remembered) > _REMEMBERED:
        for key in list(remembered)[: _REMEMBERED // 2]:
            del remembered[key]
