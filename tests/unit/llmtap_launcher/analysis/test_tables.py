"""Numbers as people read them, sparklines that hide nothing, tables that are not cut."""

from __future__ import annotations

import io

import pytest

from llmtap_launcher.analysis.tables import NONE, count, heading, ms, print_rows, share, spark, tokens, usd


def test_sparklines() -> None:
    assert spark([0, 1, 4, 8]) == " ▁▄█"
    assert spark([1, 1000]) == "▁█"
    assert spark([]) == ""
    assert spark([0, None]) == "  "
    assert len(spark(list(range(1, 1001)))) == 60
    # a lone request among many empty hours is seen
    assert spark([0] * 500 + [1] + [0] * 499).strip() == "█"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(1, 2, "50.0 %"), (1, 1, "100 %"), (0, 3, "0 %"), (99_999, 100_000, "100.00 %"), (1, 100_000, "0.001 %"), (1, 0, NONE)],
)
def test_shares(part: float, whole: float, text: str) -> None:
    assert share(part, whole) == text
    assert share(None) == NONE


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1234, "1.2 k"), (123_456, "123 k"), (4_500_000, "4.5 M"), (7e12, "7,000 G")]
)
def test_tokens(value: float, text: str) -> None:
    assert tokens(value) == text


def test_what_there_is_none_of() -> None:
    assert [form(None) for form in (ms, count, usd, tokens)] == [NONE] * 4
    assert (ms(1530), count(1234.5), usd(0.00123)) == ("1.53 s", "1,234", "$0.00123")


def test_a_table_keeps_its_cells_whole() -> None:
    file = io.StringIO()
    heading(file, "by model")
    print_rows(file, ("model", "n"), [("x" * 300, "1"), ("[red]y[/red]", "23")])
    lines = file.getvalue().splitlines()
    assert lines[1] == "by model"
    assert lines[2].split() == ["model", "n"]
    assert lines[3] == "x" * 300 + "   1"
    assert lines[4].startswith("[red]y[/red]")
    assert lines[4].endswith(" 23")
