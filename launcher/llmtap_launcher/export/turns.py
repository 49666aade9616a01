"""Which exchanges an export is made of: of every conversation the last turn that was selected, as it holds all before it.

Exchanges come newest first. Each marks the messages before its reply; an exchange whose reply is marked has a selected
successor that says all it says. So one pass in the order of time finds the last turns with one bit a message of memory.
Selected, not stored: when the last turn was broken off or is left out by a filter, the one before it stands for the
conversation. A client that trims replies is recognised as the writer did (`exchanges.loose_input`).
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtap_launcher.export.paths import Paths

#: an exchange and its reply, by their ids
Turn = tuple[int, int]


@dataclass(slots=True)
class Seen:
    """What the pass came by: exchanges selected, those that a later turn repeats, those that are the same to the last word.

    `replies`: a bit for each message that was seen to be the reply of an exchange.
    """

    selected: int = 0
    superseded: int = 0
    duplicates: int = 0
    replies: bytearray = field(default_factory=bytearray, repr=False)


class Turns:
    """Turns found, newest first: 16 bytes each."""

    def __init__(self) -> None:
        self._exchanges, self._messages = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._exchanges)

    def __iter__(self) -> Iterator[Turn]:
        return iter(zip(self._exchanges, self._messages, strict=True))

    def add(self, exchange: int, message: int) -> None:
        self._exchanges.append(exchange)
        self._messages.append(message)

    def without(self, marks: bytearray) -> Turns:
        """Those whose message has no mark."""
        out = Turns()
        for exchange, message in self:
            if not marks[message >> 3] >> (message & 7) & 1:
                out.add(exchange, message)
        return out


def turns(
    conn: sqlite3.Connection,
    paths: Paths,
    where: str,
    values: Mapping[str, Any],
    seen: Seen,
    *,
    every: bool = False,
    duplicates: bool = False,
) -> Turns:
    """The turns selected by the condition `where` (over `exchanges e`). `every`: also those with a successor;
    `duplicates`: also those whose messages were all there before."""
    cursor = conn.cursor()
    cursor.row_factory = None
    (last,) = cursor.execute("SELECT coalesce(max(id), 0) FROM messages").fetchone()
    before, replies = bytearray(last // 8 + 1), bytearray(last // 8 + 1)
    answered: set[tuple[str | None, bytes]] = set()
    anyone_trims = cursor.execute("SELECT 1 FROM exchanges WHERE loose_input IS NOT NULL LIMIT 1").fetchone() is not None
    words = "e.key_name, e.loose_tip, e.loose_input" if anyone_trims else "NULL, NULL, NULL"
    selected = again = 0
    out = Turns()
    for exchange, message, key, loose_tip, loose_input in cursor.execute(
        # not the other way round: messages are many, and the selection may be small
        f"SELECT e.id, m.id, {words} FROM exchanges e CROSS JOIN messages m "
        f"ON m.hash = e.output_tip WHERE {where} ORDER BY e.started_at DESC, e.id DESC",
        values,
    ):
        selected += 1
        at, bit = message >> 3, 1 << (message & 7)
        known = replies[at] & bit
        replies[at] |= bit
        if loose_input is not None:
            answered.add((key, loose_input))
        if not every:
            if before[at] & bit:
                continue
            paths.mark(message, before)
            if answered and (key, loose_tip) in answered:
                continue
        if known and not duplicates:
            again += 1
            continue
        out.add(exchange, message)
    if not every:
        out = out.without(before)  # said again after it had gone on
    seen.selected, seen.duplicates, seen.replies = selected, again, replies
    seen.superseded = selected - again - len(out)
    return out
