"""`llmtap slow`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

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


@click.command()
@config_option
@source_option
@selection_options
@click.option(
    "--by",
    type=click.Choice(["duration", "ttft", "stall", "tokens_per_second"]),
    default="duration",
    show_default=True,
    help="Measure: the whole time, time to first token, the longest gap in the stream, or the fewest tokens a second.",
)
@click.option("--top", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N", help="How many.")
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    metavar="MS",
    help="Only those that took at least so many ms (tokens_per_second: at most so many).",
)
@format_option
def slow(
    config_path: Path | None, source: Path | None, by: str, top: int, threshold: float | None, format: str, **chosen: Any
) -> None:
    """The slowest requests, the slowest first: where each spent its time, its page in Datasette, a command that sends it again.

    queue is the wait in the gateway (and in the engine, where that tells), prefill from there to the first token, decode from the
    first token to the end.

    \b
    Example:
      llmtap slow --since 1d --threshold 5000
      llmtap slow --by stall --model "Qwen/*" -n 5
      llmtap slow --by tokens_per_second --format jsonl
    """
    with user_errors():
        selection = selected(**chosen)
        from llmtap_launcher.analysis.slowest import Links, slowest
        from llmtap_launcher.health import reachable

        with opened(source, config_path) as (conn, config):
            links = Links(
                f"http://{reachable(config.datasette.host)}:{config.datasette.port}",
                f"{'https' if config.server.tls_cert else 'http'}://{reachable(config.server.host)}:{config.server.port}",
                config.auth.enabled,
            )
            found = slowest(conn, selection, by, top, threshold, links)
        if format == "table":
            from llmtap_launcher.analysis.slow_screen import show

            show(found, str(database_of(source, config)), by, sys.stdout)
        else:
            print_json(format, found, found)
