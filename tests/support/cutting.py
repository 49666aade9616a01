"""Bytes cut into pieces, for tests of parsers that must not care where."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st


def at(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these positions (empty pieces included, as networks never but callers may send them)."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


#: positions to cut at; `at` takes them modulo the length
cuts = st.lists(st.integers(min_value=0, max_value=1 << 20), max_size=12)
