"""One exchange with its whole conversation, read from the capture database.

A chat request resends its history, so messages are stored once, as a chain: each row of `messages` points to the one before it
(`parent_id`). What was asked is the walk back from the message whose hash is `exchanges.input_tip`; the reply is `output_tip`.
Every walk is bounded: a page never costs more than its limits, however long a conversation is or however often a prompt was sent.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

MAX_MESSAGES = 200  # shown on a page unless all are asked for
ALL_MESSAGES = 5000
MAX_CHARS = 50_000  # of one message; the rest is a link away
MAX_STRIP = 25  # turns of a conversation that can be stepped to
MAX_TURNS = 10  # neighbours named in one list
_STEPS = 1000  # of a walk down the tree


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `text` may be cut (`chars` is its full length); `extra`: stored JSON when it is more than role and text."""

    body_id: int
    role: str
    text: str | None
    chars: int
    extra: dict[str, Any] | None
    reply: bool = False
    choice: int | None = None  # of a reply with several


@dataclass(frozen=True, slots=True)
class Turn:
    """Another exchange of the same conversation."""

    uid: str
    started_at: str
    model: str | None
    outcome: str | None


@dataclass(slots=True)
class Transcript:
    """All of a page. `exchange` is the row as stored; `earlier` counts messages before the first one in `messages`."""

    exchange: dict[str, Any]
    messages: list[Message] = field(default_factory=list)
    earlier: int = 0
    previous: list[Turn] = field(default_factory=list)
    following: list[Turn] = field(default_factory=list)
    same_prompt: list[Turn] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)  # of the conversation, around this one; `first_turn` is the first's number
    first_turn: int = 1
    turns_in_all: int = 0
    deltas: list[int] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)  # of `response_meta_json`, without what the messages show already
    tools: str | None = None  # the tool definitions sent along, as JSON


_UP = """
with recursive up(id, parent_id, depth, body_id, hash) as (
  select id, parent_id, depth, body_id, hash from messages where hash = :tip
  union all
  select m.id, m.parent_id, m.depth, m.body_id, m.hash from messages m join up on m.id = up.parent_id
  limit :steps
)
"""
_DOWN = f"""
with recursive down(id, hash, level) as (
  select id, hash, 0 from messages where hash = :tip
  union all
  select m.id, m.hash, down.level + 1 from messages m join down on m.parent_id = down.id
  limit {_STEPS}
)
"""
_BODY = "b.id, b.role, substr(b.text, 1, :chars), length(b.text), b.json"
_TURN = "e.uid, e.started_at, coalesce(e.model_response, e.model_requested), e.outcome"


def _json(raw: str | None) -> dict[str, Any]:
    """A stored JSON object; anything else, which only a hand-edited database has, counts as none."""
    try:
        value = json.loads(raw) if raw else None
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _message(row: Any) -> Message:
    body_id, role, text, chars, raw = tuple(row)
    return Message(body_id, role or "", text, chars or 0, _json(raw) or None)


def _turns(conn: sqlite3.Connection, sql: str, params: dict[str, Any]) -> list[Turn]:
    return [Turn(*row) for row in conn.execute(f"{sql} limit {MAX_TURNS}", params)]


def _neighbours(conn: sqlite3.Connection, it: Transcript) -> None:
    """The turn before (whose reply this one was sent back in), the turns after, and other replies to the very same prompt."""
    row = it.exchange
    params = {"tip": row["input_tip"], "reply": row["output_tip"], "id": row["id"], "steps": ALL_MESSAGES}
    if row["input_tip"] is not None:
        # of several exchanges with that reply (the same small talk, sent twice) the latest before this one
        it.previous = _turns(
            conn,
            f"{_UP} select {_TURN} from up join exchanges e on e.output_tip = up.hash where e.id < :id "
            "order by up.depth desc, e.id desc",
            params,
        )[:1]
        it.same_prompt = _turns(
            conn, f"select {_TURN} from exchanges e where e.input_tip = :tip and e.id <> :id order by e.id desc", params
        )
    if row["output_tip"] is not None:
        it.following = _turns(
            conn,
            f"{_DOWN} select {_TURN} from down join exchanges e on e.input_tip = down.hash where e.id > :id and down.level = ("
            "select min(d.level) from down d join exchanges x on x.input_tip = d.hash where x.id > :id) order by e.id",
            params | {"tip": row["output_tip"]},
        )


def _turns_around(conn: sqlite3.Connection, it: Transcript) -> None:
    """The turns of the conversation, this one in the middle where there are too many."""
    row = it.exchange
    if row.get("conversation_id") is None:
        return
    talk = {"talk": row["conversation_id"], "at": row["started_us"] or 0, "uid": row["uid"]}
    (it.turns_in_all,) = conn.execute("select count(*) from exchanges where conversation_id = :talk", talk).fetchone()
    (before,) = conn.execute(
        "select count(*) from exchanges where conversation_id = :talk and (started_us, uid) < (:at, :uid)", talk
    ).fetchone()
    skipped = max(0, min(before - MAX_STRIP // 2, it.turns_in_all - MAX_STRIP))
    it.first_turn = skipped + 1
    it.turns = [
        Turn(*found)
        for found in conn.execute(
            f"select {_TURN} from exchanges e where conversation_id = :talk order by started_us, uid limit {MAX_STRIP} "
            f"offset {skipped}",
            talk,
        )
    ]


def last_turn(conn: sqlite3.Connection, number: int) -> str | None:
    """The `uid` of a conversation's latest exchange; None when there is no such conversation."""
    row = conn.execute(
        "select uid from exchanges where conversation_id = ? order by started_us desc, uid desc limit 1", (number,)
    ).fetchone()
    return None if row is None else str(row[0])


def _replies(conn: sqlite3.Connection, it: Transcript) -> Iterator[Message]:
    """The choices of the reply. A body is stored once however often it was said; thoughts that differ are with the exchange."""
    tips = [bytes.fromhex(tip) for tip in it.meta.pop("output_tips", ())] or [it.exchange["output_tip"]]
    thoughts = it.meta.pop("reasoning", {})
    if not isinstance(thoughts, dict):
        thoughts = {"0": thoughts}
    for index, tip in enumerate(tips):
        row = conn.execute(
            f"select {_BODY} from messages m join bodies b on b.id = m.body_id where m.hash = :tip",
            {"tip": tip, "chars": MAX_CHARS},
        ).fetchone()
        if row is None:
            continue
        message = _message(row)
        if str(index) in thoughts:
            message = replace(message, extra={**(message.extra or {}), "reasoning": thoughts[str(index)]})
        yield replace(message, reply=True, choice=index if len(tips) > 1 else None)


def _find(conn: sqlite3.Connection, ident: str) -> dict[str, Any] | None:
    number = int(ident) if ident.isascii() and ident.isdigit() and len(ident) < 19 else -1
    for where, value in (("uid = ?", ident), ("request_id = ? order by id desc", ident), ("id = ?", number)):
        cursor = conn.execute(f"select * from exchanges where {where} limit 1", (value,))
        if (row := cursor.fetchone()) is not None:
            return dict(zip([c[0] for c in cursor.description], tuple(row), strict=True))
    return None


def load(conn: sqlite3.Connection, ident: str, everything: bool = False) -> Transcript | None:
    """The exchange whose `uid`, `request_id` (the latest of that id) or number is `ident`, or None.

    At most MAX_MESSAGES messages, the last ones; with `everything` ALL_MESSAGES.
    """
    row = _find(conn, ident)
    if row is None:
        return None
    it = Transcript(row, meta=_json(row["response_meta_json"]))
    params = {"tip": row["input_tip"], "steps": ALL_MESSAGES if everything else MAX_MESSAGES, "chars": MAX_CHARS}
    asked = conn.execute(f"{_UP} select {_BODY} from up join bodies b on b.id = up.body_id order by up.depth", params)
    it.messages = [_message(found) for found in asked]
    it.earlier = max(0, (row["n_messages"] or 0) - len(it.messages)) if it.messages else 0
    it.messages += _replies(conn, it)
    _neighbours(conn, it)
    _turns_around(conn, it)
    timing = conn.execute("select deltas from token_timings where exchange_id = ?", (row["id"],)).fetchone()
    it.deltas = [int(d) for d in json.loads(timing[0])] if timing is not None else []
    tools = conn.execute("select json from bodies where hash = ?", (row["tools_hash"],)).fetchone()
    it.tools = tools[0] if tools is not None else None
    return it
