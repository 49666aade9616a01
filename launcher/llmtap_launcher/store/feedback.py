"""Ratings and changes of tags: onto the exchange they name, or kept until that is stored."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import orjson

from llmtap.core.feedback import merged
from llmtap_launcher.store.canonical import body_of
from llmtap_launcher.store.chains import Chains
from llmtap_launcher.store.rows import iso

KINDS = ("rating", "patch")

_RATE = (
    "INSERT INTO ratings(exchange_id, uid, name, source, value, string_value, comment, at, correction) VALUES (?, ?, "
    "?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT(uid, name, source) DO UPDATE SET value = excluded.value, string_value = excluded.string_value, "
    "comment = excluded.comment, at = excluded.at, correction = excluded.correction WHERE excluded.at >= ratings.at"
)


class Feedback:
    """Applies its records through the writer's connection, in the caller's transaction."""

    def __init__(self, conn: sqlite3.Connection, chains: Chains) -> None:
        self._conn = conn
        self._chains = chains
        self._waiting: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Call it after a rollback."""
        self._waiting = {uid for (uid,) in self._conn.execute("SELECT DISTINCT uid FROM feedback_waiting")}

    def apply(self, record: dict[str, Any]) -> None:
        """Stores one. Raises KeyError, TypeError or ValueError for a record without what every one has: it is poison."""
        uid = record["uid"]
        at = iso(record["at_us"])
        row = self._conn.execute("SELECT id, input_tip, tags, metadata_json FROM exchanges WHERE uid = ?", (uid,)).fetchone()
        if row is None:
            json = orjson.dumps(record).decode()
            self._conn.execute(
                "INSERT INTO feedback_waiting(uid, at, json) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (uid, at, json)
            )
            self._waiting.add(uid)
            return
        ident, input_tip, tags, metadata = tuple(row)
        if record["t"] == "rating":
            self._rate(record, ident, input_tip, at)
        else:
            self._patch(record, ident, tags, metadata)

    def settle(self, uids: Iterable[str]) -> None:
        """Exchanges that are stored now get what waited for them."""
        for uid in self._waiting.intersection(uids) if self._waiting else ():
            rows = self._conn.execute("SELECT json FROM feedback_waiting WHERE uid = ? ORDER BY at, rowid", (uid,)).fetchall()
            self._conn.execute("DELETE FROM feedback_waiting WHERE uid = ?", (uid,))
            self._waiting.discard(uid)
            for (json,) in rows:
                self.apply(orjson.loads(json))

    def _rate(self, record: dict[str, Any], ident: int, input_tip: bytes | None, at: str) -> None:
        correction = None
        if type(record.get("correction")) is dict and input_tip is not None:
            correction = self._chains.extend(input_tip, [body_of({"role": "assistant", **record["correction"]})])
        values = (record.get("value"), record.get("string_value"), record.get("comment"))
        self._conn.execute(_RATE, (ident, record["uid"], record["name"], record["source"], *values, at, correction))

    def _patch(self, record: dict[str, Any], ident: int, tags: str | None, metadata: str | None) -> None:
        if type(record.get("tags")) is list:
            tags = orjson.dumps(record["tags"]).decode() if record["tags"] else None
        if type(record.get("metadata")) is dict:
            after = merged(orjson.loads(metadata) if metadata else {}, record["metadata"])
            metadata = orjson.dumps(after).decode() if after else None
        self._conn.execute("UPDATE exchanges SET tags = ?, metadata_json = ? WHERE id = ?", (tags, metadata, ident))
