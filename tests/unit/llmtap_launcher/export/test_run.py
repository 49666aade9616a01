"""An export from beginning to end."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export import output
from llmtap_launcher.export.formats import FORMATS
from llmtap_launcher.export.options import Drawn
from llmtap_launcher.export.redact import Redactor
from llmtap_launcher.export.run import Job, export, images_path, validation_path
from llmtap_launcher.store.database import connect_ro
from support.captures import Captures


def test_training_and_validation_share_no_beginning(demo_db: Path, tmp_path: Path) -> None:
    out = tmp_path / "data.jsonl"
    job = Job(FORMATS["openai-sft"], out, drawn=Drawn(validation=0.3, every_turn=True))
    with closing(connect_ro(demo_db)) as conn:
        report = export(conn, job)
    train, check = (
        [orjson.loads(line)["messages"] for line in path.read_bytes().splitlines()] for path in (out, validation_path(out))
    )
    assert (len(train), len(check)) == tuple(file.rows for file in report.files)
    assert train and check

    def root(messages: list[Any]) -> str:
        at = next(i for i, message in enumerate(messages) if message["role"] == "user")
        return str(messages[: at + 1])

    assert {root(m) for m in train}.isdisjoint({root(m) for m in check})
    before = out.read_bytes()
    with closing(connect_ro(demo_db)) as conn:
        assert export(conn, job).manifest(job) == report.manifest(job)
    assert out.read_bytes() == before


def test_a_limit_is_of_the_newest(demo_db: Path, run: Any) -> None:
    everything, _ = run(demo_db, "openai-sft")
    few, report = run(demo_db, "openai-sft", limit=7)
    assert few == everything[:7] and report.rows == 7


def test_the_manifest_can_be_run_again(demo_db: Path, run: Any) -> None:
    from llmtap_launcher.selection import Selection

    rows, report = run(demo_db, "raw", selection=Selection(models=("it's*", "qwen3-8b")), min_tokens=5)
    with closing(sqlite3.connect(demo_db)) as conn:
        (count,) = conn.execute(f"SELECT count(*) FROM exchanges e WHERE {report.selection}").fetchone()
    assert count == len(rows) > 0


def test_trouble_leaves_nothing_behind(demo_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.Placed, "write", full)
    with closing(connect_ro(demo_db)) as conn, pytest.raises(LlmtapError, match="No space"):
        export(conn, Job(FORMATS["raw"], tmp_path / "x.jsonl"))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_database_is_one_line(captures: Captures, tmp_path: Path) -> None:
    with closing(sqlite3.connect(captures.db)) as conn:
        conn.execute("DROP VIEW otel_spans")
        conn.execute("DROP VIEW requests")
        conn.execute("DROP TABLE exchanges")
        conn.commit()
    with closing(connect_ro(captures.db)) as conn, pytest.raises(LlmtapError, match="no such table"):
        export(conn, Job(FORMATS["raw"], tmp_path / "x.jsonl"))


def test_progress_is_told(demo_db: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    with closing(connect_ro(demo_db)) as conn:
        export(conn, Job(FORMATS["openai-sft"], tmp_path / "x.jsonl"), Redactor(), lambda *now: told.append(now))
    assert told[-1][0] == told[-1][1] > 0


def test_names_of_files() -> None:
    assert validation_path(Path("a/b.jsonl")) == Path("a/b.validation.jsonl")
    assert images_path(Path("a/b.jsonl")) == Path("a/b.images")
