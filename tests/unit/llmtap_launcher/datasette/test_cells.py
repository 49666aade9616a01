from __future__ import annotations

from typing import Any

import pytest
from markupsafe import Markup

from llmtap_launcher.datasette import cells

UID = "01JD5Q0X3N8TABCDEFGHJKMNPQ"


def cell(column: str, value: Any, **row: Any) -> Markup | None:
    return cells.cell(column, value, {column: value, **row}, lambda path: "/base" + path)


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("duration_ms", 1531.0, '<span title="1531.0 ms">1.53 s</span>'),
        ("ttft_p95_ms", 12, '<span title="12 ms">12 ms</span>'),
        ("request_bytes", 10_700, '<span title="10700 bytes">10.7 kB</span>'),
        ("prompt_tokens", 12_345, "12,345"),
        ("tokens_per_second", 35.24, "35.2"),
        ("status", 502, '<span class="status bad">502</span>'),
        ("status", 200, '<span class="status good">200</span>'),
        ("outcome", "client_abort", '<span class="badge mild">client abort</span>'),
        ("outcome", "ok", '<span class="badge good">ok</span>'),
        ("uid", UID, f'<a class="uid" href="/base/-/transcript/{UID}" title="{UID}">…KMNPQ</a>'.replace("…K", "…JK")),
    ],
)
def test_by_column_name(column: str, value: Any, shown: str) -> None:
    assert cell(column, value) == shown


@pytest.mark.parametrize(
    ("column", "value"),
    [("duration_ms", None), ("duration_ms", "soon"), ("uid", "7"), ("id", 12345), ("text", "x"), ("hash", b"\0")],
)
def test_everything_else_is_left_to_datasette(column: str, value: Any) -> None:
    assert cell(column, value) is None


def test_the_time_links_to_the_transcript_when_the_row_has_its_uid() -> None:
    iso = "2025-11-21T01:36:12.123Z"
    shown = f'<time datetime="{iso}" title="{iso}">2025-11-21 01:36:12</time>'
    assert cell("started_at", iso) == shown
    assert cell("started_at", iso, uid=UID) == f'<a href="/base/-/transcript/{UID}">{shown}</a>'


def test_an_error_shows_its_status_in_its_outcome() -> None:
    assert cell("outcome", "rejected", status=503) == '<span class="badge bad">rejected 503</span>'
    assert cell("outcome", "ok", status=404) == '<span class="badge bad">ok 404</span>'
    assert cell("outcome", "ok", status=200) == '<span class="badge good">ok</span>'


def test_a_uid_is_quoted_in_its_link() -> None:
    assert cells.transcript_path('a/b?"<') == "/-/transcript/a%2Fb%3F%22%3C"


def test_hits_are_marked_and_the_text_around_them_is_escaped() -> None:
    shown = cells.snippet(f"<b>{cells.MARK_START}find</b>{cells.MARK_END} me")
    assert shown == "&lt;b&gt;<mark>find&lt;/b&gt;</mark> me"


def test_marks_in_captured_text_cannot_leave_a_tag_open() -> None:
    shown = str(cells.snippet(cells.MARK_START * 3 + "x" + cells.MARK_END))
    assert shown.count("<mark>") == shown.count("</mark>") == 3


@pytest.mark.parametrize(
    "column", ["prompt", "reply", "snippet", "role", "outcome", "started_at", "hour", "uid", "error_message"]
)
def test_captured_text_is_escaped_in_every_column(column: str) -> None:
    shown = cell(column, "<img src=x onerror=alert(1)>", uid="<script>")
    assert shown is None or ("<img" not in shown and "<script" not in shown)


def test_what_does_not_fit_a_line_is_cut() -> None:
    assert cell("prompt", "x" * 500) == "x" * 100 + "…"
    assert cell("reply", "y" * 100) == "y" * 100
