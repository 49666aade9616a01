"""`llmtap cost`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, load_config, user_errors
from llmtap_launcher.cli.selecting import (
    database_of,
    format_option,
    opened,
    print_json,
    selected,
    selection_options,
    source_option,
)

if TYPE_CHECKING:
    from llmtap_launcher.selection import Selection


@click.command()
@config_option
@source_option
@selection_options
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["key", "model", "backend", "day", "hour"]),
    help="Group by this; repeatable (default: key, model and day).",
)
@click.option("--reprice", is_flag=True, help="First compute the costs of the selection anew, by the prices as they are now.")
@format_option
def cost(config_path: Path | None, source: Path | None, by: tuple[str, ...], reprice: bool, format: str, **chosen: Any) -> None:
    """What it cost, by key, model and day; what caches saved; what it will come to.

    Prices are your own (`prices` in the configuration) and the list prices of public models. An hour of a machine is shared out
    when it is over. The forecast takes the last seven whole days.

    \b
    Example:
      llmtap cost --since 2026-11-01 --by key
      llmtap cost --key production --by day --format jsonl
      llmtap cost --reprice                            after a change of prices
    """
    with user_errors():
        selection = selected(**chosen)
        if reprice:
            _reprice(config_path, source, selection)
        from llmtap_launcher.analysis.costs import costs, lines

        with opened(source, config_path) as (conn, config):
            made = costs(conn, selection, by)
        if format == "table":
            from llmtap_launcher.analysis.cost_screen import show

            show(made, str(database_of(source, config)), sys.stdout)
        else:
            print_json(format, made, lines(made))


def _reprice(config_path: Path | None, source: Path | None, selection: Selection) -> None:
    from llmtap_launcher.analysis.tables import count, usd
    from llmtap_launcher.store import errand
    from llmtap_launcher.store.options import from_config
    from llmtap_launcher.store.repricing import Repriced
    from llmtap_launcher.store.source import is_database

    config = load_config(config_path)
    options = from_config(config)
    if source is None:
        directory, database = config.capture.dir, config.db_path
    else:
        database = source / "capture.db" if source.is_dir() else source
        directory = database.parent
    if not database.exists() and source is not None and source.exists():
        return  # spool files get the prices as they are now anyway
    if not database.exists():
        raise LlmtapError(f"{database}: no such database: nothing was captured yet (--db names another)")
    if not is_database(database):
        return
    question = {
        "rates": [asdict(rate) for rate in options.rates],
        "urls": dict(options.urls),
        "selection": {name: value if isinstance(value, str | None) else list(value) for name, value in asdict(selection).items()},
    }
    done = Repriced(
        **errand.run(
            directory, database, "reprice", question, lambda w: asdict(w.reprice(options.rates, options.urls, selection))
        )
    )
    click.echo(
        f"{database}: {count(done.changed)} of {count(done.exchanges)} exchanges have another price: "
        f"{usd(done.before_nano / 1e9)} before, {usd(done.after_nano / 1e9)} now",
        err=True,
    )
