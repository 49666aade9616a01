"""The page: whole, alone, and safe whatever models and keys are called."""

from __future__ import annotations

import re
import sqlite3
from html.parser import HTMLParser

from llmtap_launcher.analysis.page import page
from llmtap_launcher.analysis.report import report
from llmtap_launcher.selection import Selection

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def test_it_needs_nothing_else(conn: sqlite3.Connection) -> None:
    text = page(report(conn, Selection(), exact=0), "capture.db", "2026-11-21 09:30 UTC")
    seen = Seen(text)
    assert seen.tags.count("svg") == 6
    assert seen.tags.count("table") == 6
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name in ("src", "href", "style") or name.startswith("on")]
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import", text)
    for words in ("3,000", "production", "Qwen/Qwen3-8B", "first token", "percentiles from histograms", "By backend"):
        assert words in seen.words


def test_what_was_captured_is_text(conn: sqlite3.Connection) -> None:
    made = report(conn, Selection())
    made["by_model"][0]["model"] = made["by_key"][0]["key"] = EVIL
    made["total"]["errors"][EVIL] = 3
    made["total"]["finish_reasons"][EVIL] = 3
    made["notes"] = [EVIL]
    seen = Seen(page(made, EVIL, "now"))
    assert seen.words.count(EVIL) >= 6
    assert "script" not in seen.tags
    assert "img" not in seen.tags


def test_nothing_to_show(conn: sqlite3.Connection) -> None:
    seen = Seen(page(report(conn, Selection(keys=("nobody",))), "capture.db", "now"))
    assert "no exchanges in this selection" in seen.words
    assert "svg" not in seen.tags
