"""`llmtap compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, user_errors
from llmtap_launcher.cli.selecting import (
    database_of,
    format_option,
    opened,
    print_json,
    selected,
    selection_options,
    source_option,
)
from llmtap_launcher.selection import SelectionError


@click.command()
@click.argument("a")
@click.argument("b")
@config_option
@source_option
@selection_options
@click.option("--pairs", type=click.IntRange(0, 1000), default=3, show_default=True, metavar="N", help="Pairs to show in full.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the bootstrap: the same gives the same.")
@format_option
def compare(
    a: str, b: str, config_path: Path | None, source: Path | None, pairs: int, seed: int, format: str, **chosen: Any
) -> None:
    """Two models, backends, keys, tags or spans of time beside each other.

    Latencies, tokens, errors, cost, and the differences with their 95 % confidence intervals (bootstrap); then the replies of
    both to the same questions.

    A and B are a model's name (or model:NAME), backend:NAME, key:NAME, tag:NAME, or FROM..TO with times as in --since, either of
    them left out. The options narrow both sides.

    \b
    Example:
      llmtap compare Qwen/Qwen3-8B llama-3.1-8b --since 7d
      llmtap compare backend:a backend:b --model "Qwen/*"
      llmtap compare 2026-11-01..2026-11-08 2026-11-08.. --key production
    """
    with user_errors():
        from llmtap_launcher.analysis.comparison import compare as compared
        from llmtap_launcher.analysis.comparison import lines
        from llmtap_launcher.analysis.sides import side

        selection = selected(**chosen)
        try:
            left, right = side(a, selection), side(b, selection)
        except SelectionError as error:
            raise click.UsageError(str(error)) from error
        with opened(source, config_path) as (conn, config):
            made = compared(conn, left, right, pairs=pairs, seed=seed)
        for name in ("a", "b"):
            if not made[name]["requests"]:
                raise LlmtapError(f"nothing was captured of {made[name]['name']} in that time")
        if format == "table":
            from llmtap_launcher.analysis.compare_screen import show

            show(made, str(database_of(source, config)), sys.stdout)
        else:
            print_json(format, made, lines(made))
