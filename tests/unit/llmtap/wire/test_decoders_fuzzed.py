"""Mutated recordings through every decoder; `make fuzz` runs 100,000 of them, `LLMTAP_FUZZ=N` as many as wanted."""

from __future__ import annotations

import os

import pytest

from fuzz import decoders

EXECUTIONS = int(os.environ.get("LLMTAP_FUZZ", "1500"))


@pytest.mark.timeout(60 + EXECUTIONS // 50)
def test_nothing_but_wire_errors_and_the_client_s_bytes_whatever_comes() -> None:
    findings = decoders.run(EXECUTIONS, seed=int(os.environ.get("LLMTAP_FUZZ_SEED", "1")))
    assert findings.failures == []
    assert findings.executions == EXECUTIONS
    # the mutations leave enough alone to get past the first lines of a decoder
    assert findings.understood > EXECUTIONS / 2
    assert findings.faults > EXECUTIONS / 50
    assert {"StreamDecoder", "BodyDecoder", "ErrorDecoder", "Sniffer"} <= set(findings.kinds)


def test_time_grows_with_size_and_memory_is_bounded() -> None:
    for found in decoders.scaling(seed=2, bodies=12):
        # linear with room for what a busy machine does; an event that is searched again and again would be 16 times 16
        assert found.seconds[1] < 3 * found.times * max(found.seconds[0], 0.0002), found.case
        assert found.peak < 1_000_000 + 12 * found.size, found.case
