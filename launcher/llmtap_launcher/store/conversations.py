"""Which exchanges are turns of one conversation: the table `conversations` and the column `exchanges.conversation_id`.

A chat request resends its history. It goes on from the exchange of the same key whose reply is the latest message of that
history which is anybody's reply; of several (the same small talk twice) from the last that began before it. A client that
trims the white space of replies breaks the chain of hashes: then the turn before is found by what was asked and answered
without any white space.

The records of several workers come in any order, so a turn may be stored before the one it goes on from: then the
conversations concerned are sorted out again (`_regroup`). What comes out does not depend on the order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmtap_launcher.store.canonical import Body, asked_words, loose

TITLE_CHARS = 80
#: conversations larger than this are left as they are, and so are walks down the tree of messages
_MOST = 2000

_EARLIER = "AND key_name IS ? AND started_us < ? AND conversation_id IS NOT NULL ORDER BY started_us DESC LIMIT 1"
_UP = """
WITH RECURSIVE up(id, parent_id, depth, body_id, hash) AS (
  SELECT id, parent_id, depth, body_id, hash FROM messages WHERE hash = ?
  UNION ALL
  SELECT m.id, m.parent_id, m.depth, m.body_id, m.hash FROM messages m JOIN up ON m.id = up.parent_id
)
"""
_DOWN = f"""
WITH RECURSIVE down(id, hash) AS (
  SELECT id, hash FROM messages WHERE hash = ?
  UNION ALL
  SELECT m.id, m.hash FROM messages m JOIN down ON m.parent_id = down.id
  LIMIT {_MOST}
)
"""


class Conversations:
    """Places exchanges through the writer's connection, in the caller's transaction."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        row = conn.execute(
            "SELECT max(started_us) FROM (SELECT started_us FROM exchanges ORDER BY started_at DESC LIMIT 1)"
        ).fetchone()
        self._newest_us: int = row[0] or 0
        (waiting,) = conn.execute(
            "SELECT count(*) FROM (SELECT 1 FROM exchanges WHERE loose_input IS NOT NULL LIMIT 1)"
        ).fetchone()
        self._anyone_waits = bool(waiting)

    def place(
        self, row: dict[str, Any], bodies: Sequence[Body], hashes: Sequence[bytes], known: int, earlier: int | None
    ) -> None:
        """Sets `conversation_id` (and `loose_input`) of a new row of `exchanges`; its conversation is made or counts one more.

        `hashes[i]` names the message `bodies[i]` with its history; the first `known` of them were stored before. `earlier`:
        the conversation the request itself names, if it does.
        """
        self._newest_us = max(self._newest_us, row["started_us"])
        found = earlier
        if found is None and known:
            found = self._by_reply(row, [hashes[i] for i in range(known - 1, -1, -1) if bodies[i].role == "assistant"])
        if found is None:
            found = self._by_words(row, bodies)
        if found is not None:
            row["conversation_id"] = found
            self._conn.execute(
                "UPDATE conversations SET n = n + 1, first_at = min(first_at, :at), tip = iif(last_at <= :at, :tip, tip), "
                "model = iif(last_at <= :at, :model, model), last_at = max(last_at, :at) WHERE id = :id",
                {"at": row["started_at"], "tip": _tip(row), "model": _model(row), "id": found},
            )
            return
        first = next((i for i, body in enumerate(bodies) if body.role == "user"), 0)
        row["conversation_id"] = self._conn.execute(
            "INSERT INTO conversations(root_hash, tip, first_at, last_at, n, key_name, model, title) VALUES (?, ?, ?, "
            "?, 1, ?, ?, ?)",
            (
                hashes[first],
                _tip(row),
                row["started_at"],
                row["started_at"],
                row["key_name"],
                _model(row),
                title(bodies[first].text),
            ),
        ).lastrowid

    def replied(self, row: Mapping[str, Any]) -> None:
        """The reply of an exchange placed before came: its conversation ends there, if it is the latest turn."""
        self._conn.execute(
            "UPDATE conversations SET tip = ?, model = ? WHERE id = ? AND last_at = ?",
            (_tip(row), _model(row), row["conversation_id"], row["started_at"]),
        )

    def follow_up(self, row: Mapping[str, Any], known: bool) -> None:
        """After a row is stored: turns that go on from it and were stored before it join it. `known`: its reply was stored
        before."""
        mine = row["conversation_id"]
        if mine is None:
            return
        others: set[int] = set()
        ended_us = row["started_us"] + round((row["duration_ms"] or 0) * 1000)
        if known and self._newest_us > ended_us:
            others.update(self._after(row))
        if self._anyone_waits and row["loose_tip"] is not None:
            others.update(
                found
                for (found,) in self._conn.execute(
                    "SELECT conversation_id FROM exchanges WHERE loose_input = ? AND key_name IS ? AND started_us > ?",
                    (row["loose_tip"], row["key_name"], row["started_us"]),
                )
            )
        others -= {mine, None}
        if others:
            self._regroup([mine, *others])

    # finding the turn before

    def _by_reply(self, row: Mapping[str, Any], replies: Iterable[bytes]) -> int | None:
        for reply in replies:
            found = self._conn.execute(
                f"SELECT conversation_id FROM exchanges WHERE output_tip = ? {_EARLIER}",
                (reply, row["key_name"], row["started_us"]),
            ).fetchone()
            if found is not None:
                return int(found[0])
        return None

    def _by_words(self, row: dict[str, Any], bodies: Sequence[Body]) -> int | None:
        last = next((i for i in range(len(bodies) - 1, 0, -1) if bodies[i].role == "assistant"), None)
        if last is None:
            return None
        # kept also when a turn is found: one that fits better may still come
        row["loose_input"] = words = loose(asked_words(bodies[:last]), bodies[last])
        self._anyone_waits = True
        return self._loosely(words, row)

    def _loosely(self, words: bytes, row: Mapping[str, Any]) -> int | None:
        found = self._conn.execute(
            f"SELECT conversation_id FROM exchanges WHERE loose_tip = ? {_EARLIER}", (words, row["key_name"], row["started_us"])
        ).fetchone()
        return None if found is None else int(found[0])

    def _after(self, row: Mapping[str, Any]) -> list[int]:
        """Conversations of exchanges below this one's reply that began after it."""
        return [
            found
            for (found,) in self._conn.execute(
                f"{_DOWN} SELECT DISTINCT e.conversation_id FROM down JOIN exchanges e ON e.input_tip = down.hash "
                "WHERE e.started_us > ? AND e.key_name IS ? AND e.conversation_id IS NOT NULL",
                (row["output_tip"], row["started_us"], row["key_name"]),
            )
        ]

    # sorting out

    def _regroup(self, ids: Sequence[int]) -> None:
        """Places all exchanges of these conversations again, in the order of their time."""
        marks = ", ".join("?" * len(ids))
        names = "id uid started_us started_at key_name input_tip output_tip loose_input conversation_id".split()
        rows = [
            dict(zip(names, tuple(found), strict=True))
            for found in self._conn.execute(
                f"SELECT {', '.join(names)} FROM exchanges WHERE conversation_id IN ({marks}) ORDER BY started_us, uid "
                f"LIMIT {_MOST + 1}",
                tuple(ids),
            )
        ]
        if len(rows) > _MOST:
            return
        # nobody is where he was while the others look for him
        self._conn.execute(f"UPDATE exchanges SET conversation_id = NULL WHERE conversation_id IN ({marks})", tuple(ids))
        free = set(ids)
        for row in rows:
            found = self._by_reply(row, self._replies_before(row))
            if found is None and row["loose_input"] is not None:
                found = self._loosely(row["loose_input"], row)
            if found is None:
                found = row["conversation_id"] if row["conversation_id"] in free else min(free) if free else self._new()
                free.discard(found)
            self._conn.execute("UPDATE exchanges SET conversation_id = ? WHERE id = ?", (found, row["id"]))
            row["now"] = found
        self._conn.executemany("DELETE FROM conversations WHERE id = ?", [(number,) for number in free])
        for number in {row["now"] for row in rows}:
            summarise(self._conn, number)

    def _replies_before(self, row: Mapping[str, Any]) -> list[bytes]:
        return [
            found
            for (found,) in self._conn.execute(
                f"{_UP} SELECT up.hash FROM up JOIN bodies b ON b.id = up.body_id WHERE b.role = 'assistant' ORDER BY "
                "up.depth DESC",
                (row["input_tip"],),
            )
        ]

    def _new(self) -> int:
        number = self._conn.execute("INSERT INTO conversations(n) VALUES (0)").lastrowid
        assert number is not None
        return number


def title(text: str | None) -> str | None:
    """The first words of a conversation, on one line."""
    if not text:
        return None
    return " ".join(text[: TITLE_CHARS * 4].split())[:TITLE_CHARS] or None


def summarise(conn: sqlite3.Connection, number: int) -> None:
    """Writes a conversation's row from its exchanges; one without any goes."""
    rows = conn.execute(
        "SELECT input_tip, output_tip, started_at, key_name, model_response, model_requested FROM exchanges WHERE "
        "conversation_id = ? "
        "ORDER BY started_us, uid",
        (number,),
    ).fetchall()
    if not rows:
        conn.execute("DELETE FROM conversations WHERE id = ?", (number,))
        return
    first, last = rows[0], rows[-1]
    root, words = _root(conn, first[0])
    conn.execute(
        "UPDATE conversations SET root_hash = coalesce(?, root_hash), tip = ?, first_at = ?, last_at = ?, n = ?, "
        "key_name = ?, model = ?, "
        "title = coalesce(?, title) WHERE id = ?",
        (root, last[1] or last[0], first[2], last[2], len(rows), first[3], last[4] or last[5], title(words), number),
    )


def _root(conn: sqlite3.Connection, tip: bytes | None) -> tuple[bytes | None, str | None]:
    """Hash and text of the first user's message on the way to `tip`, else of the first message."""
    found = conn.execute(
        f"{_UP} SELECT up.hash, b.text FROM up JOIN bodies b ON b.id = up.body_id ORDER BY b.role <> 'user', up.depth LIMIT 1",
        (tip,),
    ).fetchone()
    return (found[0], found[1]) if found is not None else (None, None)


def _tip(row: Mapping[str, Any]) -> bytes | None:
    tip: bytes | None = row["output_tip"] or row["input_tip"]
    return tip


def _model(row: Mapping[str, Any]) -> str | None:
    model: str | None = row["model_response"] or row["model_requested"]
    return model
