"""Selections as tallies: the same counts from digests as from rows, whatever the span; percentiles near."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtap_launcher.analysis.load import load, spans
from llmtap_launcher.analysis.tally import METRICS
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.database import connect_ro, open_writer
from llmtap_launcher.store.options import Retention
from llmtap_launcher.store.prune import Pruner
from llmtap_launcher.store.rows import iso
from support.crowd import START_US, fill

COUNTS = (
    "requests succeeded failed aborted errors outcomes finish_reasons prompt_tokens completion_tokens cached_tokens "
    "reasoning_tokens cost_usd"
).split()


def alike(rough: dict[str, Any], exact: dict[str, Any]) -> None:
    assert {name: rough[name] for name in COUNTS} == {name: exact[name] for name in COUNTS}
    for metric in METRICS:
        assert rough[metric]["n"] == exact[metric]["n"]
        if exact[metric]["n"] > 300:
            for p in ("p50", "p90"):
                assert rough[metric][p] == pytest.approx(exact[metric][p], rel=0.05), (metric, p)


SELECTIONS = [
    Selection(),
    Selection(since="2026-10-03T05:17:03.123Z"),
    Selection(since="2026-10-03T00:00:00.000Z", until="2026-10-05T00:00:00.000Z"),
    Selection(since="2026-10-03T10:10:00.000Z", until="2026-10-03T10:50:00.000Z"),
    Selection(since="2026-10-03T10:50:00.000Z", until="2026-10-03T11:10:00.000Z"),
    Selection(since="2026-10-03T10:50:00.000Z", until="2026-10-03T13:10:00.000Z"),
    Selection(until="2026-10-04T07:00:00.000Z", models=("Qwen/*",)),
    Selection(keys=("ci", ""), backends=("a",)),
    Selection(models=("other",)),
    Selection(since="2027-01-01T00:00:00.000Z"),
    Selection(keys=("nobody",)),
]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("step", [None, "hour", "day"])
def test_digests_say_what_rows_say(conn: sqlite3.Connection, selection: Selection, step: Any) -> None:
    exact, rough = load(conn, selection, step), load(conn, selection, step, exact=-1)
    assert exact.exact
    assert not rough.exact
    alike(rough.total.figures(), exact.total.figures())
    assert set(rough.leaves) == set(exact.leaves)
    assert rough.step == exact.step
    assert {time: tally.requests for time, tally in rough.times.items()} == {t: v.requests for t, v in exact.times.items()}
    for name in ("key", "model", "backend"):
        left, right = rough.by(name), exact.by(name)  # type: ignore[arg-type]
        assert [(value, tally.requests) for value, tally in left.items()] == [(v, t.requests) for v, t in right.items()]


def test_rows_are_what_a_reader_in_python_counts(conn: sqlite3.Connection, rows: list[dict[str, Any]]) -> None:
    chosen = [row for row in rows if row["tags"] and row["started_at"] >= "2026-10-04"]
    loaded = load(conn, Selection(since="2026-10-04T00:00:00.000Z", tags=("canary",)))
    assert loaded.exact
    assert loaded.total.requests == len(chosen)
    assert (loaded.first, loaded.last) == (chosen[0]["started_at"], chosen[-1]["started_at"])
    found = loaded.total.figures()
    assert found["prompt_tokens"] == sum(row["prompt_tokens"] or 0 for row in chosen)
    assert found["ttft_ms"]["n"] == sum(row["outcome"] == "ok" for row in chosen)
    assert list(load(conn, Selection(tags=("canary", "more"))).leaves) == []


def test_tags_of_many_come_from_rows_all_the_same(conn: sqlite3.Connection) -> None:
    few, many = load(conn, Selection(tags=("canary",))), load(conn, Selection(tags=("canary",)), exact=10)
    assert (few.exact, many.exact) == (True, False)
    alike(many.total.figures(), few.total.figures())


@given(st.tuples(st.integers(0, 500_000_000), st.integers(1, 500_000_000)), st.sampled_from(["hour", "day"]), st.booleans())
@settings(max_examples=60)
def test_spans_cover_everything_once(span: tuple[int, int], step: Any, pruned: bool) -> None:
    since, until = (iso(START_US + ms * 1000) for ms in (span[0], span[0] + span[1]))
    cut = "2026-10-05T03:00:00.000Z" if pruned else "2026-01-01"
    at = since
    ends = {"days": "T00:00:00.000Z", "hours": ":00:00.000Z", "rows": ""}
    for kind, begin, end in spans(since, until, step, cut):
        begin, end = begin + ends[kind], end + ends[kind]
        if begin >= end:
            continue
        if begin != at:  # of deleted days only whole ones are known
            assert pruned
            assert at < cut
        at = end
        assert kind != "days" or step == "day" or begin < cut
    if not pruned:
        assert at == until


def test_of_deleted_exchanges_days_remain(tmp_path: Path) -> None:
    path = tmp_path / "capture.db"
    fill(path, 400, 4)
    with closing(connect_ro(path)) as conn:
        whole = load(conn, Selection(), "day")
    with closing(open_writer(path)) as writer:
        Pruner(writer, Retention(exchanges_days=1.5), clock=lambda: START_US / 1e6 + 4 * 86_400).run()
    with closing(connect_ro(path)) as conn:
        (left,) = conn.execute("SELECT count(*) FROM exchanges").fetchone()
        assert left < 200
        found = load(conn, Selection())
        alike(found.total.figures(), whole.total.figures())
        assert {day: tally.requests for day, tally in found.times.items()} == {d: t.requests for d, t in whole.times.items()}
        part = load(conn, Selection(since="2026-10-02T12:00:00.000Z"), "hour")
        assert part.notes == ["exchanges before 2026-10-04 are deleted: of those days only whole days are known"]
        assert part.total.requests == 300
        tagged = load(conn, Selection(tags=("canary",)))
        assert "with --tag they are not in these figures" in tagged.notes[0]


def test_an_empty_database(tmp_path: Path) -> None:
    with closing(open_writer(tmp_path / "c.db")) as conn:
        found = load(conn, Selection())
    assert (found.total.requests, found.times, found.first) == (0, {}, None)


def test_names_are_those_the_rollups_count(conn: sqlite3.Connection) -> None:
    served = {row[0] for row in conn.execute("SELECT DISTINCT model FROM usage_daily")}
    assert set(load(conn, Selection()).by("model")) == served
    assert "other" in served
