"""Applies spool records to the database: rows for exchanges, the message chain, timings.

Every record may come twice, and an `end` before its `begin`: the `uid` decides, and the result is the same. A record that
cannot be applied is poison: it is reported, never in the way of the others. Errors of the database itself (disk full,
locked, corrupted) are raised: the caller rolls back and tries the whole batch again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from llmtap.core.record import VERSION
from llmtap.spool.segment import Segment
from llmtap_launcher.store.canonical import Body
from llmtap_launcher.store.chains import Chains
from llmtap_launcher.store.rows import BEGIN_COLUMNS, END_COLUMNS, Asked, Replied, asked, iso, replied

_ALL = [*BEGIN_COLUMNS, *END_COLUMNS]
_INSERT = (
    f"INSERT INTO exchanges(uid, {', '.join(_ALL)}) VALUES (:uid, {', '.join(':' + c for c in _ALL)}) ON CONFLICT(uid) DO NOTHING"
)
#: the size of a body that was sent on as it came is known at the end, which may be here before the beginning
_SIZE = "request_bytes = coalesce(max(request_bytes, :request_bytes), :request_bytes)"
_UPDATE_BEGIN = (
    f"UPDATE exchanges SET {', '.join(f'{c} = :{c}' for c in BEGIN_COLUMNS if c != 'request_bytes')}, {_SIZE} WHERE uid = :uid"
)
_UPDATE_END = f"UPDATE exchanges SET {', '.join(f'{c} = :{c}' for c in END_COLUMNS)} WHERE uid = :uid"
_NOTHING: dict[str, Any] = dict.fromkeys(_ALL)

#: errors of SQLite that lie in the values, not in the database
_VALUE_ERRORS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the spool: its JSON, and where it ends in which segment."""

    segment: Segment
    end: int
    json: bytes


@dataclass(frozen=True, slots=True)
class Poison:
    """A line that cannot be stored, and why (without any of its text)."""

    item: Item
    reason: str


@dataclass(slots=True)
class Applied:
    """What a batch came to. `gaps`: the gap records in it; `newest_us`: when its newest record was written."""

    records: int = 0
    poison: list[Poison] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    newest_us: int = 0


@dataclass(slots=True)
class _Pair:
    """The records of one exchange in a batch: usually both, then its row is written once."""

    begin: tuple[Item, dict[str, Any]] | None = None
    end: tuple[Item, dict[str, Any]] | None = None


class Ingester:
    """Applies batches through one connection, inside the caller's transaction."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._chains = Chains(conn)

    def forget(self) -> None:
        """Call it after a rollback."""
        self._chains.forget()

    def apply(self, items: Iterable[Item]) -> Applied:
        """Stores a batch. Raises sqlite3.Error only for trouble with the database itself."""
        out = Applied()
        pairs: dict[str, _Pair] = {}
        for item in items:
            out.records += 1
            try:
                record = _record(item.json)
            except (ValueError, TypeError, RecursionError) as error:
                out.poison.append(Poison(item, str(error)))
                continue
            if type(record.get("at_us")) is int:
                out.newest_us = max(out.newest_us, record["at_us"])
            match record["t"]:
                case "begin":
                    pairs.setdefault(record["uid"], _Pair()).begin = (item, record)
                case "end":
                    pairs.setdefault(record["uid"], _Pair()).end = (item, record)
                case "gap":
                    out.gaps.append(record)
        for uid, pair in pairs.items():
            self._apply_pair(uid, pair, out)
        return out

    def _apply_pair(self, uid: str, pair: _Pair, out: Applied) -> None:
        try:
            self._guarded(lambda: self._store(uid, pair))
        except _Unfit as unfit:
            halves = [half for half in (pair.begin, pair.end) if half is not None]
            if len(halves) == 1:
                out.poison.append(Poison(halves[0][0], str(unfit)))
                return
            self._apply_pair(uid, _Pair(begin=pair.begin), out)  # one of the two may be sound
            self._apply_pair(uid, _Pair(end=pair.end), out)

    def _guarded(self, store: Callable[[], None]) -> None:
        self._conn.execute("SAVEPOINT exchange")
        try:
            store()
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, sqlite3.Error) and not isinstance(error, _VALUE_ERRORS)):
                raise
            self._conn.execute("ROLLBACK TO exchange")
            self._conn.execute("RELEASE exchange")
            self.forget()
            raise _Unfit(_reason(error)) from error
        self._conn.execute("RELEASE exchange")

    def _store(self, uid: str, pair: _Pair) -> None:
        columns: dict[str, Any] = {**_NOTHING, "uid": uid, "outcome": "open"}
        endpoint: str | None = None
        if pair.begin is not None:
            item, record = pair.begin
            question = asked(record, f"{item.segment.worker}-{item.segment.boot}")
            endpoint = question.columns["endpoint"]
            columns.update(question.columns)
            self._store_asked(question, columns)
        elif (
            row := self._conn.execute("SELECT endpoint, input_tip FROM exchanges WHERE uid = ?", (uid,)).fetchone()
        ) is not None:
            endpoint, columns["input_tip"] = row
        reply: Replied | None = None
        if pair.end is not None:
            reply = replied(pair.end[1], endpoint)
            columns.update(reply.columns)
            self._store_replied(reply, columns)
            if reply.request_bytes is not None:
                columns["request_bytes"] = reply.request_bytes
            if pair.begin is None:
                columns.update(_start(*pair.end))
        created = self._conn.execute(_INSERT, columns).rowcount == 1
        if not created and pair.begin is not None:
            self._conn.execute(_UPDATE_BEGIN, columns)
        if not created and pair.end is not None:
            self._conn.execute(_UPDATE_END, columns)
            if reply is not None and reply.request_bytes is not None:
                self._conn.execute(f"UPDATE exchanges SET {_SIZE} WHERE uid = :uid", columns)
        if reply is not None and reply.deltas is not None:
            self._conn.execute(
                "INSERT OR REPLACE INTO token_timings(exchange_id, deltas) SELECT id, ? FROM exchanges WHERE uid = ?",
                (reply.deltas, uid),
            )
        if reply is not None and reply.socket:
            self._conn.executemany(
                "INSERT OR REPLACE INTO websocket_messages(exchange_id, n, at_ms, from_client, content, bytes) "
                "SELECT id, ?, ?, ?, ?, ? FROM exchanges WHERE uid = ?",
                [(n, *said, uid) for n, said in enumerate(reply.socket)],
            )
        if not created and pair.end is None:
            self._relink(uid, columns["input_tip"])

    def _store_asked(self, question: Asked, columns: dict[str, Any]) -> None:
        if question.messages:
            columns["input_tip"] = self._chains.extend(None, question.messages)
        if question.tools is not None:
            self._chains.put(question.tools)
            columns["tools_hash"] = question.tools.hash

    def _store_replied(self, reply: Replied, columns: dict[str, Any]) -> None:
        """Every choice is a child of the last message asked. Reasoning that the stored body does not show goes to the extras."""
        tips: list[str] = []
        thoughts: dict[int, str | None] = {}
        for index, (body, reasoning) in enumerate(reply.choices):
            body_id, created = self._chains.put(body)
            if not created:
                # the same words were said before, perhaps after other thoughts: those of this exchange are kept with it
                (stored,) = self._conn.execute("SELECT json FROM bodies WHERE id = ?", (body_id,)).fetchone()
                if (_reasoning(stored) or None) != (reasoning or None):
                    thoughts[index] = reasoning or None
            tip = self._chains.extend(columns["input_tip"], [body])
            assert tip is not None
            tips.append(tip.hex())
            if index == 0:
                columns["output_tip"] = tip
        if len(tips) > 1:
            reply.meta["output_tips"] = tips
        if thoughts:
            reply.meta["reasoning"] = thoughts[0] if len(tips) == 1 else {str(i): text for i, text in thoughts.items()}
        columns["response_meta_json"] = orjson.dumps(reply.meta).decode() if reply.meta else None

    def _relink(self, uid: str, input_tip: bytes | None) -> None:
        """A `begin` behind its `end`: the reply was stored without a parent, now it has one."""
        if input_tip is None:
            return
        row = self._conn.execute("SELECT output_tip, response_meta_json FROM exchanges WHERE uid = ?", (uid,)).fetchone()
        meta = orjson.loads(row[1]) if row[1] else {}
        orphans = [bytes.fromhex(tip) for tip in meta.get("output_tips", ())] or [row[0]]
        tips = [
            self._chains.extend(input_tip, [Body(*found)])
            for tip in orphans
            for found in self._conn.execute(
                "SELECT b.hash, b.role, b.text, b.json FROM messages m JOIN bodies b ON b.id = m.body_id "
                "WHERE m.hash = ? AND m.parent_id IS NULL",
                (tip,),
            )
        ]
        if tips:
            if "output_tips" in meta:
                meta["output_tips"] = [tip.hex() for tip in tips if tip is not None]
            self._conn.execute(
                "UPDATE exchanges SET output_tip = ?, response_meta_json = ? WHERE uid = ?",
                (tips[0], orjson.dumps(meta).decode() if meta else None, uid),
            )


class _Unfit(Exception):
    """A record whose values the database, or reason, refuses."""


def _record(json: bytes) -> dict[str, Any]:
    """The record of a line. Raises ValueError for what is none of ours, or newer than us."""
    record = orjson.loads(json)
    if type(record) is not dict:
        raise ValueError("not an object")
    version, kind = record.get("v"), record.get("t")
    if type(version) is not int or version > VERSION:
        raise ValueError(f"version {version if type(version) is int else None}")
    if kind == "gap":
        return record
    if kind not in ("begin", "end"):
        raise ValueError("unknown record type")
    uid = record.get("uid")
    if type(uid) is not str or not uid:
        raise ValueError("no uid")
    return record


def _start(item: Item, end: dict[str, Any]) -> dict[str, Any]:
    """What an `end` record without its `begin` tells about the start."""
    us = end["at_us"] - round((end.get("duration_ms") or 0) * 1000)
    boot = f"{item.segment.worker}-{item.segment.boot}"
    return {"started_us": us, "started_at": iso(us), "worker": item.segment.worker, "boot": boot}


def _reasoning(json: str | None) -> str | None:
    if json is None:
        return None
    reasoning = orjson.loads(json).get("reasoning")
    return reasoning if type(reasoning) is str else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
