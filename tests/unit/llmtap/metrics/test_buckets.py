"""Buckets, and counting into them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from llmtap.metrics.buckets import ITL, LATENCY, TTFT, Histo, edges, token_buckets


def test_token_buckets_are_built_as_vllm_builds_them() -> None:
    assert token_buckets(2048) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    assert token_buckets(1) == (1,)


def test_there_are_as_many_as_vllm_has() -> None:
    assert (len(TTFT), len(ITL), len(LATENCY)) == (22, 19, 21)
    for bounds in (TTFT, ITL, LATENCY):
        assert list(bounds) == sorted(set(bounds))


def test_edges_are_written_as_prometheus_client_writes_them() -> None:
    registry = CollectorRegistry()
    Histogram("h", "H.", buckets=TTFT, registry=registry).observe(1)
    (family,) = registry.collect()
    assert edges(TTFT) == tuple(s.labels["le"] for s in family.samples if s.name == "h_bucket")


@given(st.lists(st.floats(0, 100) | st.sampled_from(ITL)))
def test_counts_are_those_of_prometheus_client(values: list[float]) -> None:
    registry = CollectorRegistry()
    reference, ours = Histogram("h", "H.", buckets=ITL, registry=registry), Histo(ITL)
    for value in values:
        reference.observe(value)
        ours.observe(value)
    cumulative = [sum(ours.counts[: i + 1]) for i in range(len(ours.counts))]
    assert cumulative == [registry.get_sample_value("h_bucket", {"le": le}) for le in edges(ITL)]
    assert ours.total == pytest.approx(sum(values)) and ours.count == len(values)
    at_once = Histo(ITL)
    at_once.observe_sorted(sorted(values))
    assert at_once.counts == ours.counts and at_once.total == pytest.approx(ours.total)


@given(st.lists(st.integers(0, 5000), min_size=1), st.integers(1, 50))
def test_copies_add_up(gaps: list[int], more: int) -> None:
    """Gaps that bear several tokens each: as many observations as tokens, and the time is what it was."""
    histo = Histo(ITL)
    tokens = len(gaps) + more
    histo.observe_sorted(sorted(gaps), len(gaps) / tokens / 10_000, tokens / len(gaps))
    assert histo.count == tokens and min(histo.counts) >= 0
    assert histo.total == pytest.approx(sum(gaps) / 10_000)
