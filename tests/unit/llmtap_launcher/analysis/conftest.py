"""One database of some days for all tests of statistics; nobody writes to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmtap_launcher.store.database import connect_ro
from support.crowd import fill


@pytest.fixture(scope="session")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 exchanges over 4.4 days, from 2026-10-02."""
    path = tmp_path_factory.mktemp("crowd") / "capture.db"
    fill(path, 3000, 4.4)
    return path


@pytest.fixture
def conn(crowd: Path) -> Iterator[sqlite3.Connection]:
    with closing(connect_ro(crowd)) as opened:
        yield opened


@pytest.fixture
def rows(conn: sqlite3.Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in conn.execute("SELECT * FROM exchanges ORDER BY id")]
