"""Bounds: entries, bytes, age."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmtap.policy.lru import Lru


def test_the_least_recently_used_goes_first() -> None:
    lru: Lru[str] = Lru(2, 1000, 60)
    for name in (b"a", b"b"):
        assert lru.put(name, name.decode(), 10, 0)
    assert lru.get(b"a", 0) == "a"
    lru.put(b"c", "c", 10, 0)
    assert lru.get(b"b", 0) is None and lru.get(b"a", 0) == "a" and lru.get(b"c", 0) == "c"
    assert (len(lru), lru.bytes) == (2, 20)


def test_bytes() -> None:
    lru: Lru[int] = Lru(100, 100, 60)
    assert not lru.put(b"large", 0, 26, 0)
    for n in range(6):
        assert lru.put(b"%d" % n, n, 25, 0)
    assert len(lru) == 4 and lru.bytes == 100 and lru.get(b"5", 0) == 5 and lru.get(b"1", 0) is None
    lru.put(b"5", 55, 5, 0)
    assert lru.bytes == 80 and lru.get(b"5", 0) == 55
    lru.limit(2, 100, 60)
    assert len(lru) == 2
    lru.clear()
    assert len(lru) == lru.bytes == 0


def test_age() -> None:
    lru: Lru[int] = Lru(10, 100, 60)
    lru.put(b"a", 1, 1, 0)
    assert lru.get(b"a", 59.9) == 1
    assert lru.get(b"a", 60) is None and len(lru) == lru.bytes == 0


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 40), st.integers(0, 5)), max_size=80))
def test_the_books_always_balance(steps: list[tuple[int, int, int]]) -> None:
    lru: Lru[int] = Lru(5, 100, 10)
    now = 0
    for name, size, wait in steps:
        now += wait
        lru.put(b"%d" % name, size, size, now)
        found = {n: lru.get(b"%d" % n, now) for n in range(9)}
        assert lru.bytes == sum(v for v in found.values() if v is not None) <= 100
        assert len(lru) == sum(v is not None for v in found.values()) <= 5
