"""A cache bounded by entries, by bytes and by age; what was used least recently goes first. Pure; the clock is passed in."""

from __future__ import annotations

from collections import OrderedDict


class Lru[T]:
    """`max_bytes`: an entry larger than a quarter of it is not taken, or a few would push out all others."""

    def __init__(self, max_entries: int, max_bytes: int, ttl_s: float) -> None:
        self.bytes = 0
        self._entries: OrderedDict[bytes, tuple[T, int, float]] = OrderedDict()  # key → value, size, until
        self.limit(max_entries, max_bytes, ttl_s)

    def __len__(self) -> int:
        return len(self._entries)

    def limit(self, max_entries: int, max_bytes: int, ttl_s: float) -> None:
        """Other bounds from now on; the age of what is there stays as it was."""
        self._max_entries, self._max_bytes, self._ttl_s = max_entries, max_bytes, ttl_s
        self._shrink()

    def get(self, key: bytes, now: float) -> T | None:
        """The value, if it is there and young enough."""
        found = self._entries.get(key)
        if found is None:
            return None
        if found[2] <= now:
            self.drop(key)
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: bytes, value: T, size: int, now: float) -> bool:
        """Keep a value of `size` bytes. False when it is too large."""
        self.drop(key)
        if size > self._max_bytes // 4:
            return False
        self._entries[key] = (value, size, now + self._ttl_s)
        self.bytes += size
        self._shrink()
        return True

    def drop(self, key: bytes) -> None:
        """Forget one."""
        found = self._entries.pop(key, None)
        if found is not None:
            self.bytes -= found[1]

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self.bytes = 0

    def _shrink(self) -> None:
        while self._entries and (len(self._entries) > self._max_entries or self.bytes > self._max_bytes):
            _, (_, size, _) = self._entries.popitem(last=False)
            self.bytes -= size
