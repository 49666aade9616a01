"""`llmtap import`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from click.testing import Result

from llmtap_launcher.store.lock import WriterLock
from support.command import llmtap

FILES = Path(__file__).parents[4] / "fixtures" / "imports"


def run(folder: Path, *words: str) -> Result:
    return llmtap("import", *words, "--dir", folder)


def test_every_kind_of_file_twice(tmp_path: Path) -> None:
    result = run(tmp_path, str(FILES), "--tag", "old")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'capture.db'}: 7 exchanges imported\n"
    assert f"{FILES / 'requests.jsonl'}:4: not JSON" in result.stderr
    assert "retain_days" in result.stderr
    with closing(sqlite3.connect(tmp_path / "capture.db")) as conn:
        replies = "SELECT b.text FROM exchanges e JOIN messages m ON m.hash = e.output_tip JOIN bodies b ON b.id = m.body_id"
        assert {text for (text,) in conn.execute(replies)} == {"The Loire.", "The Rhône.", "Yes.", "Glad.", "Tuesday.", "Hi."}
        # the second request goes on from the first
        assert conn.execute("SELECT max(n) FROM conversations").fetchone() == (2,)
        rows = conn.execute("SELECT * FROM exchanges ORDER BY uid").fetchall()
    again = run(tmp_path, str(FILES))
    assert again.stdout == f"{tmp_path / 'capture.db'}: 0 exchanges imported, 7 known before\n"
    assert again.exit_code == 0
    with closing(sqlite3.connect(tmp_path / "capture.db")) as conn:
        assert conn.execute("SELECT * FROM exchanges ORDER BY uid").fetchall() == rows


def test_beside_a_writer_it_goes_to_the_spool(tmp_path: Path) -> None:
    with WriterLock(tmp_path) as lock:
        assert lock.acquire()
        result = run(tmp_path, str(FILES / "requests.jsonl"))
    assert result.exit_code == 0 and "the writer at work takes them into the database" in result.stdout
    assert len(list((tmp_path / "spool").glob("import-*.jsonl"))) == 1


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "nothing.jsonl").write_text("{}\n")
    for words, status, said in (
        ([], 2, "Missing argument"),
        ([str(tmp_path / "missing")], 1, "no such file"),
        ([str(tmp_path / "notes.txt")], 1, "neither JSON lines nor a HAR nor a flow file"),
        ([str(tmp_path / "nothing.jsonl")], 1, "nothing was imported"),
        ([str(FILES / "batch_input.jsonl")], 1, "results"),
    ):
        result = run(tmp_path / "data", *words)
        assert (result.exit_code, said in result.output) == (status, True), result.output
