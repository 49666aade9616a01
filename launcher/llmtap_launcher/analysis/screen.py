"""A report of `llmtap analyze` on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from llmtap_launcher.analysis.report import NAMES, Report, filled
from llmtap_launcher.analysis.tables import NONE, count, heading, ms, print_rows, share, spark, tokens, usd

METRICS = (
    ("first token", "ttft_ms", ms),
    ("between tokens", "itl_ms", ms),
    ("whole request", "duration_ms", ms),
    ("tokens/s", "tokens_per_second", count),
    ("in the queue", "queue_ms", ms),
    ("gateway's own", "overhead_ms", ms),
)
#: of the tables by model, key …
COLUMNS = (
    *("requests", "ok", "failed", "aborted", "tokens in", "out"),
    *("TTFT p50", "p95", "ITL p50", "p95", "whole p50", "p95", "tok/s", "cost"),
)
_MOST_ROWS, _MOST_TIMES = 20, 48
WITHOUT = {"key": "(no key)", "backend": "(no backend)", "model": "other"}

type Row = dict[str, Any]
#: a row's name, the row -> its cells in a table, the name first
type Cells = Callable[[str, Row], list[str]]


def show(made: Report, source: str, file: TextIO, by: tuple[str, ...] = ()) -> None:
    """Prints it: a summary with what happened when, the distributions, a table for each grouping."""
    if not print_span(made, source, file):
        return
    total = made["total"]
    steps = filled(made.get("by_time", ()), made.get("step", "day"))
    if len(steps) > 1:
        file.write("\n")
        for words, value in (("requests", "requests"), ("failed", "failed"), ("tokens out", "completion_tokens")):
            values = [row[value] if row else 0 for _, row in steps]
            if any(values):
                file.write(f"{words:12}{spark(values)}  at most {tokens(max(values))} in one {made['step']}\n")
    file.write("\n")
    _summary(total, file)
    exact = "" if made["exact"] else "  (percentiles from histograms)"
    heading(file, f"distribution{exact}")
    print_rows(
        file,
        ("", "p50", "p90", "p95", "p99", "values"),
        [
            (words, *(form(total[name][f"p{p}"]) for p in (50, 90, 95, 99)), count(total[name]["n"]))
            for words, name, form in METRICS
        ],
    )
    for name in NAMES:
        rows = made.get(f"by_{name}", ())
        if rows and (name in by or len(rows) > 1 or name == "model"):
            print_groups(rows, name, COLUMNS, cells, file)
    if set(by) & {"hour", "day"}:
        print_times(made["by_time"], made["step"], COLUMNS, cells, _MOST_TIMES, file)


def print_span(made: Mapping[str, Any], source: str, file: TextIO) -> bool:
    """How many exchanges there are and of when, and what is to be noted of them. False when there are none."""
    requests = made["total"]["requests"]
    if not requests:
        file.write(f"{source}: no exchanges in this selection\n")
        return False
    file.write(f"{source}: {count(requests)} requests, {made['first']} to {made['last']} (UTC)\n")
    for note in made["notes"]:
        file.write(f"note: {note}\n")
    return True


def print_groups(rows: Sequence[Row], name: str, columns: Sequence[str], cells: Cells, file: TextIO) -> None:
    """The table by model, key or backend (`name`), its first rows."""
    heading(file, f"by {name}")
    print_rows(file, (name, *columns), [cells(row[name] or WITHOUT[name], row) for row in rows[:_MOST_ROWS]])
    if len(rows) > _MOST_ROWS:
        file.write(f"… {len(rows) - _MOST_ROWS} more (--format json has all)\n")


def print_times(rows: Sequence[Row], step: str, columns: Sequence[str], cells: Cells, most: int, file: TextIO) -> None:
    """The table by hour or day (`step`), its last `most` rows."""
    heading(file, f"by {step} (UTC)")
    shown = rows[-most:]
    print_rows(file, (step, *columns), [cells(row["time"].replace("T", " "), row) for row in shown])
    if len(shown) < len(rows):
        file.write(f"… {len(rows) - len(shown)} before (--format json has all)\n")


def _summary(total: dict[str, Any], file: TextIO) -> None:
    thought = f" ({tokens(total['reasoning_tokens'])} reasoning)" if total["reasoning_tokens"] else ""
    cached = share(total["cached_tokens"], total["prompt_tokens"])
    rows = (
        (
            "requests",
            f"{share(total['success_rate'])} succeeded, {count(total['failed'])} failed, {count(total['aborted'])} aborted",
        ),
        ("tokens", f"{tokens(total['prompt_tokens'])} in ({cached} cached), {tokens(total['completion_tokens'])} out{thought}"),
        ("cost", usd(total["cost_usd"]) if total["cost_usd"] else "none known (the models have no price: see docs/store.md)"),
        ("errors", _counts(total["errors"])),
        ("finished by", _counts(total["finish_reasons"])),
    )
    for words, text in rows:
        file.write(f"{words:12}{text}\n")


def _counts(counts: dict[str, int], most: int = 8) -> str:
    shown = [f"{name} {count(n)}" for name, n in list(counts.items())[:most]]
    return ", ".join([*shown, *(["…"] if len(counts) > most else [])]) or "none"


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the tables by model, key …: its name, then `COLUMNS`."""
    return [
        name,
        count(row["requests"]),
        share(row["success_rate"]),
        count(row["failed"]) if row["failed"] else NONE,
        count(row["aborted"]) if row["aborted"] else NONE,
        tokens(row["prompt_tokens"]),
        tokens(row["completion_tokens"]),
        *(ms(row[metric][p]) for metric in ("ttft_ms", "itl_ms", "duration_ms") for p in ("p50", "p95")),
        count(row["tokens_per_second"]["p50"]),
        usd(row["cost_usd"]) if row["cost_usd"] else NONE,
    ]
