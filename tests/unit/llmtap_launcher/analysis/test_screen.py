"""The report on a terminal."""

from __future__ import annotations

import io
import sqlite3
from typing import Any

from llmtap_launcher.analysis.report import report
from llmtap_launcher.analysis.screen import print_groups, print_times, show
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


def test_long_tables_say_what_they_leave_out() -> None:
    def cells(name: str, row: dict[str, Any]) -> list[str]:
        return [name, str(row["n"])]

    text = io.StringIO()
    print_groups([{"key": f"k{n}" if n else None, "n": n} for n in range(22)], "key", ("number",), cells, text)
    lines = text.getvalue().splitlines()
    assert lines[1] == "by key"
    assert [lines[3].split(), lines[22].split()] == [["(no", "key)", "0"], ["k19", "19"]]
    assert lines[23:] == ["… 2 more (--format json has all)"]
    text = io.StringIO()
    print_times([{"time": f"2026-11-21T{n:02}", "n": n} for n in range(5)], "hour", ("number",), cells, 3, text)
    assert [line.split() for line in text.getvalue().splitlines()[1:]] == [
        ["by", "hour", "(UTC)"],
        ["hour", "number"],
        *(["2026-11-21", f"0{n}", str(n)] for n in (2, 3, 4)),
        ["…", "2", "before", "(--format", "json", "has", "all)"],
    ]
