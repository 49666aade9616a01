"""`llmtap analyze`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
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


@click.command()
@config_option
@source_option
@selection_options
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["model", "key", "backend", "hour", "day"]),
    help="Group by this; repeatable (default: model, key and backend).",
)
@format_option
@click.option(
    "--html", "html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write a page with charts."
)
def analyze(
    config_path: Path | None, source: Path | None, by: tuple[str, ...], format: str, html: Path | None, **chosen: Any
) -> None:
    """Statistics: how many requests and how they went, errors, latencies, tokens, cost; in all and by model, key, backend, time.

    Success is a reply without an error; what clients broke off is aborted. Latencies and tokens a second are of requests that a
    backend answered well, as p50, p90, p95 and p99: exact for up to 20,000 requests, from histograms beyond. Times are UTC.

    \b
    Example:
      llmtap analyze --since 2h
      llmtap analyze --since 2026-11-01 --until 2026-11-08 --model "Qwen/*" --by key --by day
      llmtap analyze --log-dir ./logs/vllm --html report.html
    """
    with user_errors():
        selection = selected(**chosen)
        from llmtap_launcher.analysis.report import lines, report

        with opened(source, config_path) as (conn, config):
            made = report(conn, selection, by)
        name = str(database_of(source, config))
        if html is not None:
            _write_page(html, made, name)
        if format == "table":
            from llmtap_launcher.analysis.screen import show

            show(made, name, sys.stdout, by)
        else:
            print_json(format, made, lines(made))
        if html is not None:
            click.echo(f"{html}: written", err=True)


def _write_page(path: Path, made: dict[str, Any], source: str) -> None:
    """The page appears whole or not at all."""
    from datetime import UTC, datetime

    from llmtap_launcher.analysis.page import page

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page(made, source, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise LlmtapError(f"{path}: cannot be written: {error.strerror}") from error
