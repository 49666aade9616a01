"""What `llmtap slow` shows on a terminal: a table, and below it page and replay command of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from llmtap_launcher.analysis.tables import NONE, count, ms, print_rows

_HEADER = (
    "",
    "started (UTC)",
    "model",
    "key",
    "whole",
    "queue",
    "prefill",
    "decode",
    "longest gap",
    "tok/s",
    "in",
    "out",
    "outcome",
)
_MOST_COMMANDS = 5


def show(found: Sequence[dict[str, Any]], source: str, by: str, file: TextIO) -> None:
    """Prints them. Commands are shown of the first five: JSON has all."""
    if not found:
        file.write(f"{source}: no request in this selection was that slow\n")
        return
    file.write(f"{source}: the {len(found)} slowest by {by.replace('_', ' ')}\n\n")
    rows = [
        (
            str(place),
            row["started_at"].replace("T", " ").removesuffix("Z"),
            row["model"] or NONE,
            row["key_name"] or NONE,
            *(ms(row[name]) for name in ("duration_ms", "queue_ms", "prefill_ms", "decode_ms", "itl_max_ms")),
            *(count(row[name]) for name in ("tokens_per_second", "prompt_tokens", "completion_tokens")),
            row["outcome"].replace("_", " "),
        )
        for place, row in enumerate(found, 1)
    ]
    print_rows(file, _HEADER, rows, left=4)
    file.write("\n")
    for place, row in enumerate(found[:_MOST_COMMANDS], 1):
        file.write(f"{place}  {row['url']}\n")
        file.write(f"   {row['replay'] or '(its messages are not stored: it cannot be sent again)'}\n")
    if len(found) > _MOST_COMMANDS:
        file.write("--format json has the pages and commands of all\n")
