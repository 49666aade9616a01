"""What `llmtap cost` shows on a terminal."""

from __future__ import annotations

from typing import Any, TextIO

from llmtap_launcher.analysis.costs import NAMES
from llmtap_launcher.analysis.report import filled
from llmtap_launcher.analysis.screen import print_groups, print_span, print_times
from llmtap_launcher.analysis.tables import NONE, count, heading, print_rows, share, spark, tokens, usd

_HEADER = ("requests", "tokens in", "cached", "out", "cost", "prefix cache saved", "gateway cache saved")
_MOST_TIMES = 31


def show(made: dict[str, Any], source: str, file: TextIO) -> None:
    """Prints it: the sum, the forecast, a table for each grouping, the prices."""
    if not print_span(made, source, file):
        return
    total = made["total"]
    file.write(f"\ncost        {usd(total['cost_usd'])}\n")
    file.write(
        f"saved       {usd(total['saved_by_prefix_cache_usd'])} by prefix caches, "
        f"{usd(total['saved_by_gateway_cache_usd'])} by the gateway's cache\n"
    )
    if total["unpriced_tokens"]:
        part = share(total["unpriced_tokens"], total["prompt_tokens"] + total["completion_tokens"])
        file.write(f"no price    {tokens(total['unpriced_tokens'])} tokens ({part}): set prices, then llmtap cost --reprice\n")
    if ahead := made["forecast"]:
        file.write(
            f"forecast    {usd(ahead['next_30_days_usd'])} in 30 days ({usd(ahead['next_30_days_low_usd'])} to "
            f"{usd(ahead['next_30_days_high_usd'])}), {usd(ahead['month_expected_usd'])} in {ahead['month']}\n"
        )
    if steps := filled(made.get("by_time", ()), made.get("step", "day")):
        values = [row["cost_usd"] if row else 0 for _, row in steps]
        if len(values) > 1 and any(values):
            file.write(f"by {made['step']:9}{spark(values)}  at most {usd(max(values))}\n")
    for name in NAMES:
        rows = made.get(f"by_{name}", ())
        if rows:
            print_groups(rows, name, _HEADER, _row, file)
    if rows := made.get("by_time", ()):
        print_times(rows, made["step"], _HEADER, _row, _MOST_TIMES, file)
    if made["prices"]:
        heading(file, "prices, dollars for a million tokens")
        print_rows(
            file,
            ("model", "provider", "since", "in", "cached", "out", "an hour"),
            [(p["model"], p["provider"], p["valid_from"] or NONE, *(_rate(p[name]) for name in _RATES)) for p in made["prices"]],
            left=3,
        )


_RATES = ("input_usd_per_million", "cached_usd_per_million", "output_usd_per_million", "gpu_hour_usd")


def _rate(value: float | None) -> str:
    return NONE if value is None else f"{value:.6g}"


def _row(name: str, row: dict[str, Any]) -> list[str]:
    def money(value: float) -> str:
        return usd(value) if value else NONE

    return [
        name,
        count(row["requests"]),
        tokens(row["prompt_tokens"]),
        share(row["cached_tokens"], row["prompt_tokens"]),
        tokens(row["completion_tokens"]),
        money(row["cost_usd"]),
        money(row["saved_by_prefix_cache_usd"]),
        money(row["saved_by_gateway_cache_usd"]),
    ]
