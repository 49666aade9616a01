"""The writer's lag, from its status file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from llmtap.spool.lag import STATUS_FILE, TROUBLES, quarantined, writer_lag_s, writer_troubles
from llmtap_launcher.store.status import FILENAME, StatusFile, Trouble, WriterStatus


def test_it_reads_what_the_writer_writes(tmp_path: Path) -> None:
    assert STATUS_FILE == FILENAME
    assert writer_lag_s(tmp_path) is None
    StatusFile(tmp_path, clock=lambda: 100.0).write(WriterStatus(lag_s=1.5), now=True)
    assert writer_lag_s(tmp_path, lambda: 101.0) == 1.5
    assert writer_lag_s(tmp_path, lambda: 200.0) == 101.5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"at": "x", "lag_s": 1}', json.dumps({"at": None, "lag_s": 1})])
def test_whatever_stands_there_nothing_is_raised(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS_FILE).write_text(text)
    assert writer_lag_s(tmp_path) is None
    assert writer_troubles(tmp_path) == {} and quarantined(tmp_path) is None


def test_what_is_wrong_with_it(tmp_path: Path) -> None:
    assert set(TROUBLES) == {*get_args(Trouble), "silent"}
    assert writer_troubles(tmp_path) == {} and quarantined(tmp_path) is None

    def having(status: WriterStatus, age_s: float = 1.0) -> list[str]:
        StatusFile(tmp_path, clock=lambda: 100.0).write(status, now=True)
        return [trouble for trouble, on in writer_troubles(tmp_path, lambda: 100.0 + age_s).items() if on]

    assert having(WriterStatus(bad=3)) == [] and quarantined(tmp_path) == 3
    for trouble in get_args(Trouble):
        assert having(WriterStatus(state="error", error="why", trouble=trouble)) == [trouble]
    assert having(WriterStatus(state="running", trouble="locked")) == [], "it was, and is over"
    assert having(WriterStatus(), 60.0) == having(WriterStatus(state="error", trouble="locked"), 60.0) == ["silent"]
    assert having(WriterStatus(state="stopped"), 60.0) == [], "it ended in order"
    (tmp_path / STATUS_FILE).write_text('{"at": 100, "lag_s": 0, "state": "error", "trouble": "of a newer version"}')
    assert [t for t, on in writer_troubles(tmp_path, lambda: 101.0).items() if on] == ["other"]
