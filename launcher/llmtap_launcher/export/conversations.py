"""Turns as conversations: the messages as trainers read them, the tools, and which replies are worth learning from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from llmtap_launcher.export.normal import Unfit, link_calls, normal, think, thoughts, tools_of
from llmtap_launcher.export.options import Message, Shape
from llmtap_launcher.export.paths import Paths
from llmtap_launcher.export.pictures import Pictures
from llmtap_launcher.export.provenance import Provenance
from llmtap_launcher.export.stored import Bodies, Stored, as_message, role_of, rows
from llmtap_launcher.export.turns import Turn

_TOOLS_KEPT = 512

_Path = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Asks:
    """What costs time and is found out only when somebody wants it. `replies`: `Seen.replies`, to save asking for most."""

    roots: bool = False
    provenance: bool = False
    replies: bytearray = field(default_factory=bytearray, repr=False)


@dataclass(slots=True)
class Conversation:
    """One conversation; its last message is the reply. `foreign`: places of the replies that nobody of ours gave.
    `root`: what it begins with, the same for all that begin so. `replies`: places of the assistant's messages."""

    exchange: int
    uid: str
    messages: list[Message]
    tools: list[Message]
    parallel: bool
    foreign: list[int]
    root: bytes
    replies: list[int]


class Conversations:
    """Makes them of turns, through one connection."""

    def __init__(self, conn: sqlite3.Connection, paths: Paths, shape: Shape, pictures: Pictures, asks: Asks) -> None:
        self._conn = conn
        self._paths = paths
        self._shape = shape
        self._pictures = pictures
        self._asks = asks
        self._provenance = Provenance(conn, paths, asks.replies) if asks.provenance else None
        self._bodies = Bodies(conn)
        self._tools: dict[bytes, list[Message]] = {}

    def of(self, turns: Sequence[Turn]) -> Iterator[Conversation | Unfit]:
        """One for each turn, in their order; Unfit for what has no place in the shape."""
        paths = [self._paths.to(message) for _, message in turns]
        stored = self._bodies.load(body for _, bodies in paths for body in bodies)
        meta = "NULL" if self._shape.reasoning == "drop" else "response_meta_json"
        columns, ids = f"id, uid, tools_hash, params_json, {meta}", sorted(turn[0] for turn in turns)
        exchanges = {row[0]: row for row in rows(self._conn, columns, "exchanges", "id", ids)}
        corrected = self._corrections(turns) if self._shape.corrected else {}
        roots = self._roots(paths, stored) if self._asks.roots else [b""] * len(turns)
        for (exchange, _), (messages, bodies), root in zip(turns, paths, roots, strict=True):
            try:
                yield self._of(messages, bodies, stored, exchanges[exchange], root, corrected.get(exchange))
            except Unfit as unfit:
                yield unfit

    def _of(
        self,
        path: list[int],
        bodies: list[int],
        stored: dict[int, Stored],
        row: Sequence[Any],
        root: bytes,
        corrected: Message | None,
    ) -> Conversation:
        exchange, uid, tools_hash, params_json, meta_json = row
        messages: list[Message] = []
        replies: list[int] = []
        special = False
        shape, pictures = self._shape, self._pictures
        for body in bodies:
            found = stored.get(body)
            if type(found) is tuple:  # nearly all
                role = found[1]
                if role == "assistant":
                    replies.append(len(messages))
                elif role != "user" and role != "system":
                    special = True
                    messages.append(normal(as_message(found), body, shape, pictures))
                    continue
                messages.append({"role": role, "content": found[2]})
            elif found is not None:
                special = True
                message = normal(as_message(found), body, shape, pictures)
                if message["role"] == "assistant":
                    replies.append(len(messages))
                messages.append(message)
            else:
                raise Unfit("texts that are no longer stored")
        if corrected is not None:
            messages[-1] = normal(corrected, bodies[-1], shape, pictures)
        elif shape.reasoning != "drop":
            self._rethink(path, bodies, stored, messages, meta_json)
        reply = messages[-1]
        if reply["role"] != "assistant" or not (reply["content"] or reply.get("tool_calls")):
            raise Unfit("replies that say nothing")
        if special:
            link_calls(messages)
        foreign: list[int] = []
        if self._provenance is not None:
            last = len(path) - 1
            foreign = [at for at in replies if at != last and self._provenance.foreign(path[at])]
        tools = self._tools_of(tools_hash) if tools_hash is not None and shape.tools else []
        parallel = True
        if params_json is not None and ("parallel_tool_calls" in params_json or '"functions"' in params_json):
            params = orjson.loads(params_json)
            parallel = params.get("parallel_tool_calls") is not False
            if not tools and shape.tools and type(functions := params.get("functions")) is list:
                tools = tools_of(functions)
        return Conversation(exchange, uid, messages, tools, parallel, foreign, root, replies)

    def _rethink(
        self, path: list[int], ids: list[int], stored: dict[int, Stored], messages: list[Message], meta_json: str | None
    ) -> None:
        """The same words may have been said after other thoughts: those of this reply are kept with its exchange, and so are
        those of the replies before it."""
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            meta = meta_json if at == len(messages) - 1 else self._meta(path[at])
            if meta is None or '"reasoning"' not in meta:
                continue
            said = orjson.loads(meta).get("reasoning", ...)
            said = said.get("0") if type(said) is dict else said
            if said is not ... and said != thoughts(as_message(stored[ids[at]])):
                again = {
                    key: value
                    for key, value in as_message(stored[ids[at]]).items()
                    if key not in ("reasoning", "reasoning_content", "thinking")
                }
                messages[at] = normal(again, ids[at], self._shape, self._pictures)
                think(messages[at], said, self._shape)

    def _meta(self, message: int) -> str | None:
        row = self._conn.execute(
            "SELECT e.response_meta_json FROM messages m JOIN exchanges e ON e.output_tip = m.hash WHERE m.id = ? "
            "ORDER BY e.started_us DESC LIMIT 1",
            (message,),
        ).fetchone()
        return None if row is None else row[0]

    def _tools_of(self, hashed: bytes) -> list[Message]:
        if hashed not in self._tools:
            row = self._conn.execute("SELECT json FROM bodies WHERE hash = ?", (hashed,)).fetchone()
            if len(self._tools) >= _TOOLS_KEPT:
                self._tools.clear()
            self._tools[hashed] = tools_of(orjson.loads(row[0])) if row is not None else []
        return self._tools[hashed]

    def _roots(self, paths: Sequence[_Path], stored: dict[int, Stored]) -> list[bytes]:
        """What each begins with: the hash of the first user's message with what stands before it."""
        firsts = [
            messages[next((at for at, body in enumerate(bodies) if role_of(stored.get(body)) == "user"), 0)]
            for messages, bodies in paths
        ]
        hashes = dict(rows(self._conn, "id, hash", "messages", "id", sorted(set(firsts))))
        return [hashes[first] for first in firsts]

    def _corrections(self, turns: Sequence[Turn]) -> dict[int, Message]:
        """The latest correction of each exchange that has one."""
        found = {}
        for exchange, body in rows(
            self._conn,
            "exchange_id, m.body_id",
            "(SELECT * FROM ratings WHERE correction IS NOT NULL ORDER BY at) r JOIN messages m ON m.hash = r.correction",
            "exchange_id",
            sorted(turn[0] for turn in turns),
        ):
            found[exchange] = body
        stored = self._bodies.load(found.values())
        return {exchange: as_message(stored[body]) for exchange, body in found.items() if body in stored}
