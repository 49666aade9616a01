"""`llmtap backup FILE`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from llmtap_launcher.store.database import connect_ro
from support.captures import Captures, weather
from support.command import llmtap


def test_a_copy_while_the_writer_is_at_work(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures:
        weather(captures)
        result = llmtap("backup", tmp_path / "copy.db", "--db", captures.db)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'copy.db'}: ")
    assert result.stdout.endswith(f"kB, a copy of {captures.db}\n")
    with closing(connect_ro(tmp_path / "copy.db")) as conn:
        assert conn.execute("SELECT count(*) FROM exchanges").fetchone()[0] == 3


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    result = llmtap("backup", tmp_path / "copy.db", "--db", tmp_path / "none.db")
    assert (result.exit_code, result.output) == (1, f"{tmp_path / 'none.db'}: no such database\n")
    with Captures(tmp_path) as captures:
        result = llmtap("backup", tmp_path / "no" / "copy.db", "--db", captures.db)
    assert (result.exit_code, result.output) == (1, f"{tmp_path / 'no'}: no such folder\n")
