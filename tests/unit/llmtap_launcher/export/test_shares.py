"""Shares: always the same, about as large as they say, and never half a conversation."""

from __future__ import annotations

from llmtap_launcher.export.shares import place, within

ROOTS = [number.to_bytes(8, "big") for number in range(4000)]


def test_the_share_is_as_large_as_it_says() -> None:
    for share in (0.0, 0.05, 0.5, 1.0):
        inside = sum(within(share, "", root) for root in ROOTS)
        assert abs(inside / len(ROOTS) - share) < 0.02


def test_it_is_always_the_same_and_another_with_another_salt() -> None:
    assert [place("a", root) for root in ROOTS] == [place("a", root) for root in ROOTS]
    assert [within(0.5, "a", root) for root in ROOTS] != [within(0.5, "b", root) for root in ROOTS]


def test_a_larger_share_holds_the_smaller() -> None:
    assert all(within(0.3, "", root) for root in ROOTS if within(0.1, "", root))
