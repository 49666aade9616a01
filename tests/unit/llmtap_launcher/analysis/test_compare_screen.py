"""A comparison on a terminal."""

from __future__ import annotations

import io
import sqlite3

from llmtap_launcher.analysis.compare_screen import show
from llmtap_launcher.analysis.comparison import compare
from llmtap_launcher.analysis.sides import side
from llmtap_launcher.selection import Selection


def test_table_and_pairs(conn: sqlite3.Connection) -> None:
    made = compare(conn, side("Qwen/*", Selection()), side("mistral-7b", Selection()), pairs=2)
    made["pairs"]["latest"][0]["a"]["reply"] = "first line\n" + "many words " * 200
    made["pairs"]["latest"][0]["b"]["reply"] = None
    file = io.StringIO()
    show(made, "capture.db", file)
    text = file.getvalue()
    assert text.startswith("capture.db: A Qwen/* (")
    gaps = next(line for line in text.splitlines() if line.startswith("between tokens"))
    assert gaps.rstrip().endswith("*")
    assert "+1" in gaps
    for words in ("failed", "pp", "95 % from", "asked of both: ", "? What is ", "squared?", " | (not stored)", "first line", "…"):
        assert words in text
    assert max(len(line) for line in text.splitlines()) < 130


def test_a_side_without_exchanges(conn: sqlite3.Connection) -> None:
    file = io.StringIO()
    show(compare(conn, side("nothing", Selection()), side("backend:a", Selection())), "capture.db", file)
    assert "A: no exchanges in this selection\n" in file.getvalue()
    assert "asked of both" not in file.getvalue()
