from __future__ import annotations

from llmtap_launcher.sim import families


def test_token_buckets_go_up_to_the_context_length() -> None:
    assert families.token_buckets(2048) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    assert families.token_buckets(2000)[-1] == 2000
    assert families.token_buckets(1999)[-1] == 1000


def test_buckets_rise() -> None:
    buckets = (families.TTFT, families.ITL, families.LATENCY, families.ITERATION, families.N, families.PREEMPTIONS)
    assert all(list(b) == sorted(set(b)) for b in buckets)
