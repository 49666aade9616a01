"""The bill on a terminal."""

from __future__ import annotations

import io
import sqlite3

from llmtap_launcher.analysis.cost_screen import show
from llmtap_launcher.analysis.costs import costs
from llmtap_launcher.selection import Selection


def shown(conn: sqlite3.Connection, selection: Selection) -> str:
    file = io.StringIO()
    show(costs(conn, selection), "capture.db", file)
    return file.getvalue()


def test_everything_is_there(conn: sqlite3.Connection) -> None:
    text = shown(conn, Selection())
    for words in ("cost        $0.", "saved       $0.", "no price    ", "forecast    $", "by day      ", "by key", "by model"):
        assert words in text
    assert "prices, dollars for a million tokens" in text
    assert "Qwen/*   own       –      0.1    0.02  0.4        –" in text
    assert "2026-10-06" in text


def test_nothing(conn: sqlite3.Connection) -> None:
    assert shown(conn, Selection(keys=("nobody",))) == "capture.db: no exchanges in this selection\n"
