"""What commands may be pointed at: databases, folders, spool files; and what is changed there: nothing."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.errors import LlmtapError
from llmtap.policy.pricing import Rate
from llmtap_launcher.store.archive import Archive
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.options import Options
from llmtap_launcher.store.source import open_source
from support.captures import Captures, weather
from support.records import begin, end, sink
from support.traffic import write

FIXTURES = Path(__file__).parents[4] / "fixtures"


def seen(path: Path, options: Options | None = None) -> tuple[list[Any], list[str]]:
    told: list[str] = []
    with open_source(path, options, told.append) as conn:
        return [tuple(row) for row in conn.execute("SELECT outcome, count(*) FROM exchanges GROUP BY 1 ORDER BY 1")], told


def state(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_database_and_its_folder(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures:
        weather(captures)
    for path in (tmp_path, tmp_path / "capture.db"):
        assert seen(path) == ([("client_abort", 1), ("ok", 2)], [])


def test_a_log_folder_is_read_and_left_alone(tmp_path: Path) -> None:
    write(tmp_path, 200)
    before = state(tmp_path)
    assert len(before) > 1
    for path in (tmp_path, tmp_path / "spool"):
        counts, told = seen(path)
        assert sum(n for _, n in counts) == 200
        assert dict(counts)["lost"] > 0  # its gateway is gone
        assert "spool files are read into a temporary database (" in told[0]
    assert state(tmp_path) == before


def test_one_file_also_renamed_or_packed(tmp_path: Path) -> None:
    write(tmp_path, 30)
    (path,) = (tmp_path / "spool").iterdir()
    whole = seen(tmp_path)[0]
    packed = Archive(tmp_path).add(path)
    renamed = tmp_path / "log of may.jsonl"
    path.rename(renamed)
    assert seen(renamed)[0] == whole
    assert seen(packed)[0] == whole
    assert seen(tmp_path)[0] == whole  # from its archive
    data = packed.read_bytes()
    packed.write_bytes(data[: len(data) // 2] + bytes(50) + data[len(data) // 2 + 50 :])
    _, told = seen(packed)
    assert any("damaged, read as far as it goes" in line for line in told)


def test_an_exchange_under_way_is_open_while_its_worker_lives(tmp_path: Path) -> None:
    log = sink(tmp_path)
    log.write_begin(begin("u1"))
    log.write_begin(begin("u2"))
    log.write_end(end("u2"))
    assert seen(tmp_path)[0] == [("ok", 1), ("open", 1)]
    log.close()
    assert seen(tmp_path)[0] == [("lost", 1), ("ok", 1)]


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, 20)
    (path,) = (tmp_path / "spool").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"nonsense\n", *lines[1:]]))
    counts, told = seen(tmp_path)
    assert sum(n for _, n in counts) == 20
    assert told[-1] == "1 damaged lines are left out"


def test_prices_count(tmp_path: Path) -> None:
    write(tmp_path, 20)
    rate = Rate("own", "served-*", None, 10**9, 10**9, None, None)
    with open_source(tmp_path, Options((rate,))) as conn:
        assert conn.execute("SELECT sum(cost_nanousd) FROM exchanges").fetchone()[0] > 0


def test_what_is_not_in_the_database_yet_is_said(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures:
        weather(captures)
    write(tmp_path, 20)
    counts, told = seen(tmp_path)
    assert counts == [("client_abort", 1), ("ok", 2)]
    assert "are not in capture.db yet: llmtap ingest --dir" in told[0]
    with WriterLock(tmp_path) as lock:
        assert lock.acquire()
        assert seen(tmp_path)[1] == []  # somebody is at it


def test_nothing_of_the_kind(tmp_path: Path) -> None:
    other = tmp_path / "requests.log"
    other.write_text('{"timestamp": "2025-10-21T01:02:03", "request_id": "x"}\n')
    for path, words in (
        (tmp_path / "none", "no such database"),
        (tmp_path, "neither capture.db nor spool files"),
        (other, "llmtap import"),
    ):
        with pytest.raises(LlmtapError, match=words) as caught, open_source(path):
            pass
        assert "\n" not in str(caught.value)


def test_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "capture.db"
    old = next((FIXTURES / "databases").glob("*.gz"))
    path.write_bytes(gzip.decompress(old.read_bytes()))
    try:
        sqlite3.connect(path).close()
    finally:
        with pytest.raises(LlmtapError, match="of an earlier llmtap"), open_source(path):
            pass
