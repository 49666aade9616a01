"""Which side of a split a conversation is on: by its root, so that no beginning of it is on both, and always the same."""

from __future__ import annotations

from hashlib import blake2b

_PARTS = 1_000_000


def place(salt: str, root: bytes) -> float:
    """A number from 0 to 1 that depends on nothing but the two."""
    return int.from_bytes(blake2b(salt.encode() + root, digest_size=8).digest(), "big") % _PARTS / _PARTS


def within(share: float, salt: str, root: bytes) -> bool:
    """Whether the root belongs to the share (0: none does, 1: all do)."""
    return share >= 1 or place(salt, root) < share
