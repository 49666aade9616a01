"""`llmtap backup`: a consistent copy of the live database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import click

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, load_config, user_errors
from llmtap_launcher.report import size
from llmtap_launcher.store.backup import backup as copy


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@click.option(
    "--db",
    "database",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Database to copy (default: that of the configuration).",
)
def backup(file: Path, config_path: Path | None, database: Path | None) -> None:
    """Copy the database to FILE, also while it is being written.

    The copy shows one moment, is checked, and opens anywhere: with `llmtap browse FILE`, sqlite3, pandas.

    \b
    Example:
      llmtap backup may.db
      llmtap browse may.db --port 0
    """
    with user_errors():
        source = database or load_config(config_path).db_path
        try:
            written = copy(source, file)
        except (OSError, sqlite3.Error) as error:
            raise LlmtapError(f"{file}: not written: {getattr(error, 'strerror', None) or error}") from error
        click.echo(f"{file}: {size(written)}, a copy of {source}")
