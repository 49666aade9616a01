"""The ladder: steps down on failure, probes, and owes a gap record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.spool.ladder import Ladder, Level, level_for


def test_steps_down_one_by_one_and_stays_down_until_the_probe() -> None:
    ladder = Ladder(probe_s=0.1)
    assert ladder.attempt(0.0) is Level.ALL
    assert ladder.failed(Level.ALL, 0.0, "disk_full") is Level.NO_TIMINGS
    assert ladder.failed(Level.NO_TIMINGS, 0.0, "disk_full") is Level.NO_BODIES
    assert not ladder.succeeded(Level.NO_BODIES)
    assert ladder.attempt(0.05) is Level.NO_BODIES
    assert ladder.failed(Level.NO_BODIES, 0.05, "disk_full") is Level.NO_RECORDS
    assert ladder.attempt(0.09) is Level.NO_RECORDS
    assert ladder.attempt(0.1) is Level.ALL
    assert ladder.attempt(0.1) is Level.NO_RECORDS, "one probe at a time"


def test_recovery_owes_a_gap_once() -> None:
    ladder = Ladder()
    ladder.failed(Level.ALL, 0.0, "io_error")
    ladder.drop("timings")
    ladder.drop("bodies", "too_large")
    assert ladder.attempt(1.0) is Level.ALL
    assert ladder.succeeded(Level.ALL)
    assert ladder.settle() == {"timings_io_error": 1, "bodies_too_large": 1}
    assert not ladder.succeeded(Level.ALL)
    assert ladder.dropped == {"timings_io_error": 1, "bodies_too_large": 1}


def test_the_size_limit_comes_in_steps_and_lifts_by_itself() -> None:
    assert [level_for(n, 100) for n in (0, 89, 90, 95, 99, 100, 500)] == [0, 0, 1, 2, 2, 3, 3]
    assert level_for(10**15, None) is Level.ALL
    ladder = Ladder()
    assert ladder.attempt(0.0, Level.NO_RECORDS) is Level.NO_RECORDS
    assert ladder.why == "spool_full"
    ladder.drop("records")
    assert ladder.attempt(0.0, Level.NO_TIMINGS) is Level.NO_TIMINGS
    assert not ladder.succeeded(Level.NO_TIMINGS)
    assert ladder.attempt(0.0) is Level.ALL
    assert ladder.succeeded(Level.ALL)
    assert ladder.settle() == {"records_spool_full": 1}


def test_a_full_disk_under_a_full_spool_is_probed_all_the_same() -> None:
    ladder = Ladder(probe_s=0.1)
    ladder.attempt(0.0, Level.NO_TIMINGS)
    ladder.failed(Level.NO_TIMINGS, 0.0, "disk_full")
    ladder.failed(Level.NO_BODIES, 0.0, "disk_full")
    assert (ladder.attempt(0.05, Level.NO_TIMINGS), ladder.why) == (Level.NO_RECORDS, "disk_full")
    assert ladder.attempt(0.2, Level.NO_TIMINGS) is Level.NO_TIMINGS
    ladder.succeeded(Level.NO_TIMINGS)
    assert (ladder.level, ladder.why) == (Level.NO_TIMINGS, "spool_full")


step = st.tuples(st.booleans(), st.sampled_from(Level), st.floats(0, 0.3))


@pytest.mark.parametrize("floor", Level)
@given(steps=st.lists(step))
def test_once_the_disk_works_again_only_the_limit_counts(floor: Level, steps: list[tuple[bool, Level, float]]) -> None:
    ladder, now = Ladder(), 0.0
    for works, limit, wait in steps:
        now += wait
        level = ladder.attempt(now, limit)
        while level < Level.NO_RECORDS and not works:
            deeper = ladder.failed(level, now, "disk_full")
            assert deeper > level
            level = deeper
        if level < Level.NO_RECORDS:
            ladder.succeeded(level)
        assert ladder.level >= limit
    level = ladder.attempt(now + 1, floor)
    assert level is floor
    if level < Level.NO_RECORDS:
        ladder.succeeded(level)
        assert ladder.level is floor
