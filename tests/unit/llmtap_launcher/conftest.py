"""What tests of the store and of its pages share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmtap_launcher.store.database import open_writer


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An empty database, as its writer has it open: `c.db`."""
    with closing(open_writer(tmp_path / "c.db")) as opened:
        yield opened
