"""The slowest on a terminal."""

from __future__ import annotations

import io
import sqlite3

from llmtap_launcher.analysis.slow_screen import show
from llmtap_launcher.analysis.slowest import Links, slowest
from llmtap_launcher.selection import Selection


def test_table_and_commands(conn: sqlite3.Connection) -> None:
    found = slowest(conn, Selection(), top=7, links=Links("http://h:1", "http://h:2"))
    found[0]["replay"] = None
    file = io.StringIO()
    show(found, "capture.db", "duration", file)
    text = file.getvalue()
    assert text.startswith("capture.db: the 7 slowest by duration\n")
    assert "longest gap" in text
    assert f"1  http://h:1/-/transcript/{found[0]['uid']}\n   (its messages are not stored" in text
    assert text.count("curl -s http://h:1/-/request/") == 4
    assert "--format json has the pages and commands of all" in text


def test_nothing() -> None:
    file = io.StringIO()
    show([], "capture.db", "ttft", file)
    assert file.getvalue() == "capture.db: no request in this selection was that slow\n"
