"""The report on a terminal."""

from __future__ import annotations

import io
import sqlite3

from llmtap_launcher.analysis.report import report
from llmtap_launcher.analysis.screen import show
from llmtap_launcher.selection import Selection


def shown(conn: sqlite3.Connection, selection: Selection, by: tuple[str, ...] = (), exact: int = 20_000) -> str:
    file = io.StringIO()
    show(report(conn, selection, by, exact), "capture.db", file, by)
    return file.getvalue()


def test_everything_is_there(conn: sqlite3.Connection) -> None:
    text = shown(conn, Selection())
    assert text.startswith("capture.db: 3,000 requests, 2026-10-02T00:00:00.000Z to 2026-10-06T")
    for words in ("requests    ", "tokens out  ", "first token ", "between tokens", "whole request", "tokens/s", "gateway's own"):
        assert words in text
    for words in ("by model", "by key", "by backend", "(no key)", "(no backend)", "rate_limit_error", "finished by stop"):
        assert words in text
    assert "histograms" not in text
    assert "by day" not in text
    assert "█" in text


def test_asked_by_hour_and_by_histograms(conn: sqlite3.Connection) -> None:
    text = shown(conn, Selection(), ("hour",), exact=0)
    assert "(percentiles from histograms)" in text
    assert "2026-10-06 09 " in text
    assert "… 58 before (--format json has all)" in text


def test_nothing(conn: sqlite3.Connection) -> None:
    assert shown(conn, Selection(keys=("nobody",))) == "capture.db: no exchanges in this selection\n"
