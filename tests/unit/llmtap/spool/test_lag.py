"""The writer's lag, from its status file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtap.spool.lag import STATUS_FILE, writer_lag_s
from llmtap_launcher.store.status import FILENAME, StatusFile, WriterStatus


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
