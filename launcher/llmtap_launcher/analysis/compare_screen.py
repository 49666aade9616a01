"""What `llmtap compare` shows on a terminal: a table of differences, then questions that both answered, side by side."""

from __future__ import annotations

import textwrap
from typing import Any, TextIO

from llmtap_launcher.analysis.tables import NONE, count, heading, ms, print_rows, share, tokens, usd

_WIDTH, _LINES = 54, 12


def show(made: dict[str, Any], source: str, file: TextIO) -> None:
    """Prints it. A star marks what differs with 95 % confidence."""
    a, b = made["a"], made["b"]
    file.write(f"{source}: A {a['name']} ({count(a['requests'])} requests), B {b['name']} ({count(b['requests'])} requests)\n")
    for letter, one in (("A", a), ("B", b)):
        if not one["requests"]:
            file.write(f"{letter}: no exchanges in this selection\n")
    file.write("\n")
    rows = [(row["metric"], *_cells(row)) for row in made["metrics"]]
    print_rows(file, ("", "A", "B", "B - A", "change", "95 % from", "to", ""), rows)
    file.write("\n* differs: the interval of the difference (bootstrap) does not have 0 in it\n")
    pairs = made["pairs"]
    if not pairs["count"]:
        return
    heading(
        file, f"asked of both: {count(pairs['count'])} questions, {share(pairs['equal_replies'], pairs['count'])} answered alike"
    )
    for pair in pairs["latest"]:
        file.write(f"\n? {_short(pair['asked'])}\n")
        left, right = (_column(letter, pair[letter.lower()]) for letter in "AB")
        for number in range(max(len(left), len(right))):
            one, other = (column[number] if number < len(column) else "" for column in (left, right))
            file.write(f"{one:{_WIDTH}} | {other}".rstrip() + "\n")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    form = {"ms": ms, "share": lambda v: share(v), "usd": usd, "tokens": tokens}.get(row["unit"], count)

    def signed(value: float | None) -> str:
        if value is None:
            return NONE
        if row["unit"] == "share":
            return f"{value * 100:+.2f} pp"
        return ("-" if value < 0 else "+") + form(abs(value))

    change = NONE if row["change"] is None else f"{row['change'] * 100:+.1f} %"
    return (
        form(row["a"]),
        form(row["b"]),
        *map(signed, (row["delta"],)),
        change,
        signed(row["low"]),
        signed(row["high"]),
        "*" * row["differs"],
    )


def _column(letter: str, answer: dict[str, Any]) -> list[str]:
    speed = "" if answer["tokens_per_second"] is None else f", {count(answer['tokens_per_second'])} tok/s"
    price = "" if answer["cost_usd"] is None else f", {usd(answer['cost_usd'])}"
    head = f"{letter} {answer['model'] or ''}: {ms(answer['duration_ms'])}{speed}{price}"
    lines = [line for part in (answer["reply"] or "(not stored)").splitlines() for line in textwrap.wrap(part, _WIDTH) or [""]]
    return [head[:_WIDTH], *lines[:_LINES], *(["…"] if len(lines) > _LINES else [])]


def _short(text: str | None) -> str:
    return textwrap.shorten(" ".join((text or "(not stored)").split()), 200, placeholder=" …")
