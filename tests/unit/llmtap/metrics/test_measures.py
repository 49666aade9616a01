"""Names and labels that dashboards rely on, and inter-token times from the gaps of a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.metrics.buckets import ITL, Histo
from llmtap.metrics.measures import WHERE, Measures, token_gaps

#: contract of names; a change here breaks somebody's dashboard
COUNTERS = """requests prompt_tokens generation_tokens cached_prompt_tokens cost_usd refusals retries backend_failures
    cache_lookups hook_errors tee_errors capture_dropped"""
GAUGES = """requests_running requests_waiting backend_up spool_bytes spool_lag_seconds writer_trouble quarantined_records
    build_info"""
HISTOGRAMS = """queue_time_seconds time_to_first_token_seconds inter_token_latency_seconds time_per_output_token_seconds
    e2e_request_latency_seconds inference_time_seconds overhead_seconds request_prompt_tokens request_generation_tokens
    batch_size batch_wait_seconds"""


def test_the_names_are_there() -> None:
    kinds = {family.name: family.kind for family in Measures(2048).families}
    for kind, names in (("counter", COUNTERS), ("gauge", GAUGES), ("histogram", HISTOGRAMS)):
        for name in names.split():
            assert kinds[f"llmtap_{name}"] == kind, name


def test_labels() -> None:
    labels = {family.name: family.label_names for family in Measures(2048).families}
    assert (
        labels["llmtap_requests"] == (*WHERE, "outcome", "status") == ("endpoint", "model", "backend", "key", "outcome", "status")
    )
    assert labels["llmtap_refusals"] == ("code",) and labels["llmtap_retries"] == ("reason",)
    assert labels["llmtap_backend_failures"] == ("backend", "reason") and labels["llmtap_backend_up"] == ("backend",)
    assert labels["llmtap_cache_lookups"] == ("result",) and labels["llmtap_hook_errors"] == ("addon", "hook")
    assert labels["llmtap_requests_running"] == labels["llmtap_requests_waiting"] == ()


def counted(gaps: list[int], choices: int, tokens: int | None) -> Histo:
    histo = Histo(ITL)
    histo.observe_sorted(*token_gaps(gaps, choices, tokens))
    return histo


def test_a_token_a_piece_is_exact() -> None:
    """Also with a few tokens that make no piece: the end of text, markup around reasoning and tools."""
    for tokens in (None, 21, 22, 24):
        histo = counted([150] * 20, 1, tokens)
        assert histo.count == 20 and histo.total == pytest.approx(0.3) and histo.counts[1] == 20


def test_pieces_of_several_tokens_are_shared_out() -> None:
    histo = counted([400] * 10, 1, 41)
    assert histo.count == 40 and histo.total == pytest.approx(0.4)
    assert histo.counts[0] == 40  # 10 ms each: within the first bucket


def test_interleaved_choices_are_told_apart() -> None:
    """Two choices a step, 20 ms a step: no choice ever waited 0 ms for its next token."""
    histo = counted([0, *[200, 0] * 9], 2, 22)
    assert histo.counts[0] == 0 and histo.counts[1] == histo.count == 18
    assert histo.total == pytest.approx(18 * 0.02)


@given(st.lists(st.integers(0, 3000)), st.integers(1, 4), st.none() | st.integers(0, 500))
def test_whatever_comes_counts_add_up(gaps: list[int], choices: int, tokens: int | None) -> None:
    histo = counted(gaps, choices, tokens)
    pieces = max(0, len(gaps) - choices + 1)
    assert histo.count in (pieces, (tokens or 0) - choices) and min(histo.counts) >= 0
    if choices == 1:
        assert histo.total == pytest.approx(sum(gaps) / 10_000)
