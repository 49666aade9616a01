"""Applies spool records to the database: rows for exchanges, the message chain, timings.

Every record may come twice, and an `end` before its `begin`: the `uid` decides, and the result is the same. A record that
cannot be applied is poison: it is reported, never in the way of the others. Errors of the database itself (disk full,
locked, corrupted) are raised: the caller rolls back and tries the whole batch again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from llmtap.core.record import VERSION
from llmtap.policy.pricing import Rate
from llmtap.spool.segment import Segment
from llmtap_launcher.store.canonical import Body, asked_words, loose
from llmtap_launcher.store.chains import Chains
from llmtap_launcher.store.conversations import Conversations
from llmtap_launcher.store.feedback import KINDS, Feedback
from llmtap_launcher.store.pricing import Prices
from llmtap_launcher.store.rollups import COLUMNS, Rollups
from llmtap_launcher.store.rows import BEGIN_COLUMNS, END_COLUMNS, Replied, asked, iso, replied

#: what placing and pricing add to a row
_ADDED = ["conversation_id", "loose_input", "loose_tip", "cost_nanousd", "price_id"]
_ALL = [*BEGIN_COLUMNS, *END_COLUMNS, *_ADDED]
_INSERT = f"INSERT INTO exchanges(uid, {', '.join(_ALL)}) VALUES (:uid, {', '.join(':' + c for c in _ALL)})"


def _update(columns: Iterable[str]) -> str:
    return f"UPDATE exchanges SET {', '.join(f'{c} = :{c}' for c in columns)} WHERE uid = :uid"


_UPDATE_BEGIN = _update([*BEGIN_COLUMNS, "conversation_id", "loose_input", "loose_tip"])
#: `request_bytes`: the size of a body that was sent on as it came is known at the end
_UPDATE_END = _update([*END_COLUMNS, "request_bytes", "loose_tip", "cost_nanousd", "price_id"])
_NOTHING: dict[str, Any] = dict.fromkeys(_ALL)
#: what is asked of a row that is there already
_OLD = tuple(
    dict.fromkeys(
        [
            *COLUMNS,
            *"id endpoint method cache started_us request_bytes tags metadata_json".split(),
            *"input_tip output_tip conversation_id loose_input loose_tip".split(),
        ]
    )
)
_SELECT_OLD = f"SELECT {', '.join(_OLD)} FROM exchanges WHERE uid = ?"

#: errors of SQLite that lie in the values, not in the database
_VALUE_ERRORS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


#: a row of `exchanges` that counts (1) or no longer counts (-1) in the statistics, and its gaps between content events
Share = tuple[Mapping[str, Any], Sequence[int], int]


#: the messages of a request, their hashes, how many were stored before, the conversation it names
_History = tuple[Sequence[Body], Sequence[bytes], int, int | None]


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
    """Applies batches through one connection, inside the caller's transaction. `rates`: own prices; `urls`: of the backends."""

    def __init__(self, conn: sqlite3.Connection, rates: Sequence[Rate] = (), urls: Mapping[str, str] | None = None) -> None:
        self._conn = conn
        self._chains = Chains(conn)
        self._conversations = Conversations(conn)
        self._prices = Prices(conn, rates, urls)
        self._rollups = Rollups()
        self._feedback = Feedback(conn, self._chains)

    def forget(self) -> None:
        """Call it after a rollback."""
        self._chains.forget()
        self._prices.forget()
        self._feedback.forget()

    def apply(self, items: Iterable[Item]) -> Applied:
        """Stores a batch. Raises sqlite3.Error only for trouble with the database itself."""
        out = Applied()
        self._rollups.clear()
        pairs: dict[str, _Pair] = {}
        feedback: list[tuple[Item, dict[str, Any]]] = []
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
                case _:
                    feedback.append((item, record))
        for uid, pair in pairs.items():
            self._apply_pair(uid, pair, out)
        self._feedback.settle(pairs)
        for item, record in feedback:
            self._apply_feedback(item, record, out)
        self._rollups.flush(self._conn)
        return out

    def _apply_pair(self, uid: str, pair: _Pair, out: Applied) -> None:
        try:
            for row, gaps, sign in self._guarded(lambda: self._store(uid, pair)):
                self._rollups.add(row, gaps, sign)
        except _Unfit as unfit:
            halves = [half for half in (pair.begin, pair.end) if half is not None]
            if len(halves) == 1:
                out.poison.append(Poison(halves[0][0], str(unfit)))
                return
            self._apply_pair(uid, _Pair(begin=pair.begin), out)  # one of the two may be sound
            self._apply_pair(uid, _Pair(end=pair.end), out)

    def _apply_feedback(self, item: Item, record: dict[str, Any], out: Applied) -> None:
        def store() -> list[Share]:
            self._feedback.apply(record)
            return []

        try:
            self._guarded(store)
        except _Unfit as unfit:
            out.poison.append(Poison(item, str(unfit)))

    def _guarded(self, store: Callable[[], list[Share]]) -> list[Share]:
        self._conn.execute("SAVEPOINT exchange")
        try:
            shares = store()
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, sqlite3.Error) and not isinstance(error, _VALUE_ERRORS)):
                raise
            self._conn.execute("ROLLBACK TO exchange")
            self._conn.execute("RELEASE exchange")
            self.forget()
            raise _Unfit(_reason(error)) from error
        self._conn.execute("RELEASE exchange")
        return shares

    def _store(self, uid: str, pair: _Pair) -> list[Share]:
        """Writes the rows of an exchange; returns what that changes in the statistics."""
        found = self._conn.execute(_SELECT_OLD, (uid,)).fetchone()
        old: dict[str, Any] | None = None if found is None else dict(zip(_OLD, tuple(found), strict=True))
        columns: dict[str, Any] = {**_NOTHING, "outcome": "open", **(old or {}), "uid": uid}
        history: _History | None = None
        if pair.begin is not None:
            history = self._store_asked(pair.begin, columns)
        elif old is None and pair.end is not None:
            columns.update(_start(*pair.end))
        reply: Replied | None = None
        repeated = False
        if pair.end is not None:
            reply = replied(pair.end[1], columns["endpoint"])
            columns.update(reply.columns)
            repeated = self._store_replied(reply, columns)
            columns["request_bytes"] = _larger(columns["request_bytes"], reply.request_bytes)
            columns["cost_nanousd"], columns["price_id"] = self._prices.cost(columns)
        if history is not None and columns["conversation_id"] is None:
            self._conversations.place(columns, *history)
        if old is None:
            self._conn.execute(_INSERT, columns)
        else:
            if pair.begin is not None:
                self._conn.execute(_UPDATE_BEGIN, columns)
            if pair.end is not None:
                self._conn.execute(_UPDATE_END, columns)
                if pair.begin is None and columns["conversation_id"] is not None:
                    self._conversations.replied(columns)
        if reply is not None and reply.socket:
            self._conn.executemany(
                "INSERT OR REPLACE INTO websocket_messages(exchange_id, n, at_ms, from_client, content, bytes) "
                "SELECT id, ?, ?, ?, ?, ? FROM exchanges WHERE uid = ?",
                [(n, *said, uid) for n, said in enumerate(reply.socket)],
            )
        gaps = self._store_timings(uid, None if reply is None else reply.deltas, old)
        if old is not None and pair.end is None:
            repeated = self._relink(columns)
        if columns["output_tip"] is not None and columns["conversation_id"] is not None:
            self._conversations.follow_up(columns, repeated)
        return [(columns, gaps[1], 1)] if old is None else [(old, gaps[0], -1), (columns, gaps[1], 1)]

    def _store_timings(
        self, uid: str, deltas: list[int] | None, old: Mapping[str, Any] | None
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Keeps the arrival times; returns the gaps that counted before and those that count now."""
        before: Sequence[int] = ()
        if old is not None and old["outcome"] != "open":
            row = self._conn.execute("SELECT deltas FROM token_timings WHERE exchange_id = ?", (old["id"],)).fetchone()
            before = orjson.loads(row[0])[1:] if row is not None else ()
        if deltas is None:
            return before, before
        self._conn.execute(
            "INSERT OR REPLACE INTO token_timings(exchange_id, deltas) SELECT id, ? FROM exchanges WHERE uid = ?",
            (orjson.dumps(deltas).decode(), uid),
        )
        return before, deltas[1:]

    def _store_asked(self, begin: tuple[Item, dict[str, Any]], columns: dict[str, Any]) -> _History | None:
        """The messages of the request; returns what tells its conversation."""
        item, record = begin
        question = asked(record, item.segment.run)
        begun = columns["method"] is not None
        kept = {name: columns[name] for name in ("tags", "metadata_json")}
        columns.update(question.columns, request_bytes=_larger(columns["request_bytes"], question.columns["request_bytes"]))
        if begun:  # the tags may have been changed since
            columns.update(kept)
        if question.tools is not None:
            self._chains.put(question.tools)
            columns["tools_hash"] = question.tools.hash
        if not question.messages:
            return None
        parent, conversation = self._named_before(question.previous, columns)
        hashes, known = self._chains.link_all(parent, question.messages)
        columns["input_tip"] = hashes[-1]
        columns["asked_words"] = asked_words(question.messages)
        if columns["output_tip"] is None:  # or else it is whole already
            columns["loose_tip"] = columns["asked_words"]
        return question.messages, hashes, known, conversation

    def _named_before(self, previous: str | None, columns: Mapping[str, Any]) -> tuple[bytes | None, int | None]:
        """Where the Responses API goes on from (`previous_response_id`): its reply, its conversation."""
        if previous is None:
            return None, None
        row = self._conn.execute(
            "SELECT output_tip, conversation_id FROM exchanges WHERE response_id = ? AND endpoint = 'responses' AND "
            "key_name IS ?",
            (previous, columns["key_name"]),
        ).fetchone()
        return (None, None) if row is None else (row[0], row[1])

    def _store_replied(self, reply: Replied, columns: dict[str, Any]) -> bool:
        """Every choice is a child of the last message asked. Reasoning that the stored body does not show goes to the extras.
        Returns whether the (first) reply was stored behind the same messages before."""
        repeated = False
        tips: list[str] = []
        thoughts: dict[int, str | None] = {}
        for index, (body, reasoning) in enumerate(reply.choices):
            body_id, created = self._chains.put(body)
            if not created:
                # the same words were said before, perhaps after other thoughts: those of this exchange are kept with it
                (stored,) = self._conn.execute("SELECT json FROM bodies WHERE id = ?", (body_id,)).fetchone()
                if (_reasoning(stored) or None) != (reasoning or None):
                    thoughts[index] = reasoning or None
            (tip,), known = self._chains.link_all(columns["input_tip"], [body])
            tips.append(tip.hex())
            if index == 0:
                repeated = bool(known)
                if (
                    words := columns.get("asked_words") or (columns["loose_tip"] if columns["output_tip"] is None else None)
                ) is not None:
                    columns["loose_tip"] = loose(words, body)
                columns["output_tip"] = tip
        if len(tips) > 1:
            reply.meta["output_tips"] = tips
        if thoughts:
            reply.meta["reasoning"] = thoughts[0] if len(tips) == 1 else {str(i): text for i, text in thoughts.items()}
        columns["response_meta_json"] = orjson.dumps(reply.meta).decode() if reply.meta else None
        return repeated

    def _relink(self, columns: dict[str, Any]) -> bool:
        """A `begin` behind its `end`: the reply was stored without a parent, now it has one. Returns whether that is news."""
        uid, input_tip = columns["uid"], columns["input_tip"]
        if input_tip is None or columns["output_tip"] is None:
            return False
        row = self._conn.execute("SELECT output_tip, response_meta_json FROM exchanges WHERE uid = ?", (uid,)).fetchone()
        meta = orjson.loads(row[1]) if row[1] else {}
        orphans = [bytes.fromhex(tip) for tip in meta.get("output_tips", ())] or [row[0]]
        bodies = [
            Body(*found)
            for tip in orphans
            for found in self._conn.execute(
                "SELECT b.hash, b.role, b.text, b.json FROM messages m JOIN bodies b ON b.id = m.body_id "
                "WHERE m.hash = ? AND m.parent_id IS NULL",
                (tip,),
            )
        ]
        if not bodies:
            return False
        tips = [self._chains.link_all(input_tip, [body])[0][0] for body in bodies]
        if "output_tips" in meta:
            meta["output_tips"] = [tip.hex() for tip in tips]
        columns["output_tip"] = tips[0]
        columns["loose_tip"] = loose(columns["asked_words"], bodies[0])
        self._conn.execute(
            "UPDATE exchanges SET output_tip = ?, response_meta_json = ?, loose_tip = ? WHERE uid = ?",
            (tips[0], orjson.dumps(meta).decode() if meta else None, columns["loose_tip"], uid),
        )
        self._conversations.replied(columns)
        return True


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
    if kind not in ("begin", "end", *KINDS):
        raise ValueError("unknown record type")
    uid = record.get("uid")
    if type(uid) is not str or not uid:
        raise ValueError("no uid")
    return record


def _start(item: Item, end: dict[str, Any]) -> dict[str, Any]:
    """What an `end` record without its `begin` tells about the start."""
    us = end["at_us"] - round((end.get("duration_ms") or 0) * 1000)
    return {"started_us": us, "started_at": iso(us), "worker": item.segment.worker, "boot": item.segment.run}


def _larger(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else max(one, other)


def _reasoning(json: str | None) -> str | None:
    if json is None:
        return None
    reasoning = orjson.loads(json).get("reasoning")
    return reasoning if type(reasoning) is str else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
