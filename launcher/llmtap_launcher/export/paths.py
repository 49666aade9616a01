"""The tree of messages, walked from a message up to its root without asking SQLite for every step.

A conversation's messages lie close together, so they are read in blocks of consecutive ids, 16 bytes a message; the blocks
read last are kept. A walk is then a few look-ups in memory, which is what lets an export stream a million exchanges.
"""

from __future__ import annotations

import sqlite3
from array import array

_SHIFT = 9
_SIZE = 1 << _SHIFT
_MASK = _SIZE - 1
#: 4096 blocks: two million messages, some 35 MB
_KEPT = 4096

_Block = tuple[array[int], array[int]]


class Paths:
    """Parents and bodies of messages, by id. Reads through one connection, which must see one moment of the database."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._cursor = conn.cursor()
        self._cursor.row_factory = None
        self._blocks: dict[int, _Block] = {}

    def to(self, message: int) -> tuple[list[int], list[int]]:
        """All messages up to this one, first to last, and their bodies."""
        messages, bodies = [], []
        blocks = self._blocks
        while message:
            parents, of = blocks.get(message >> _SHIFT) or self._load(message >> _SHIFT)
            first = message & ~_MASK
            while message >= first and message:  # a parent's id is the smaller one
                messages.append(message)
                bodies.append(of[message - first])
                message = parents[message - first]
        messages.reverse()
        bodies.reverse()
        return messages, bodies

    def mark(self, message: int, marks: bytearray) -> None:
        """Sets the bit of every message before this one, up to the first that has it (then all before that have it)."""
        blocks = self._blocks
        parents, _ = blocks.get(message >> _SHIFT) or self._load(message >> _SHIFT)
        message = parents[message & _MASK]
        while message:
            parents, _ = blocks.get(message >> _SHIFT) or self._load(message >> _SHIFT)
            first = message & ~_MASK
            while message >= first and message:
                at, bit = message >> 3, 1 << (message & 7)
                if marks[at] & bit:
                    return
                marks[at] |= bit
                message = parents[message - first]

    def _load(self, number: int) -> _Block:
        parents, bodies = array("q", bytes(8 * _SIZE)), array("q", bytes(8 * _SIZE))
        first = number << _SHIFT
        for ident, parent, body in self._cursor.execute(
            "SELECT id, parent_id, body_id FROM messages WHERE id BETWEEN ? AND ?", (first, first + _MASK)
        ):
            parents[ident & _MASK] = parent or 0
            bodies[ident & _MASK] = body
        if len(self._blocks) >= _KEPT:
            del self._blocks[next(iter(self._blocks))]
        block = self._blocks[number] = (parents, bodies)
        return block
