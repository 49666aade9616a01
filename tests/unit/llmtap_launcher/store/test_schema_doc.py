"""The schema page is what the migrations make."""

from __future__ import annotations

from pathlib import Path

from llmtap_launcher.store.schema_doc import markdown

PAGE = Path(__file__).parents[4] / "docs" / "schema.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "docs/schema.md is out of date: run `make docs`"


def test_it_shows_tables_columns_and_indexes() -> None:
    page = markdown()
    assert "## requests (view)" in page
    assert "| `ttft_ms` | REAL | Time to first token" in page
    assert "Indexes: `(parent_id)`" in page
