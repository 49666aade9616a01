"""The options by which commands choose exchanges (of which database, from when to when, of which model, key, backend, tag), and
how they print what programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtap_launcher.selection import Selection, SelectionError, parse_moment

if TYPE_CHECKING:
    import sqlite3

    from llmtap.core.config import Config


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """`2h`, `2026-11-01` …: see `parse_moment`. What it is not is wrong usage."""
    if value is None:
        return None
    try:
        return parse_moment(value)
    except SelectionError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def source_option[F: Callable[..., Any]](command: F) -> F:
    """The option `--db PATH` (or `--log-dir`). The command gets `source`: a path, or None for the configuration's database."""
    return click.option(
        "--db",
        "--log-dir",
        "source",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="A capture database, a capture or log folder, or a spool file (default: the configuration's database).",
    )(command)


def selection_options[F: Callable[..., Any]](command: F) -> F:
    """`--since --until --model --key --backend --tag`. The command gets what `selected` takes."""
    options = (
        click.option(
            "--since", callback=_moment, metavar="WHEN", help="From then on: 2h, 7d, 2026-11-01, 2026-11-01T09:30 (UTC)."
        ),
        click.option("--until", callback=_moment, metavar="WHEN", help="Before then."),
        click.option(
            "--model", "models", multiple=True, metavar="NAME", help="Served model; * and ? are wildcards. Repeatable: any."
        ),
        click.option("--key", "keys", multiple=True, metavar="NAME", help="Name of the API key; '' for none. Repeatable: any."),
        click.option("--backend", "backends", multiple=True, metavar="NAME", help="Name of the backend. Repeatable: any."),
        click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag of the request. Repeatable: all."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def selected(
    since: str | None,
    until: str | None,
    models: Sequence[str] = (),
    keys: Sequence[str] = (),
    backends: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> Selection:
    """The selection of those options. A span that ends before it begins is wrong usage."""
    if since is not None and until is not None and since >= until:
        raise click.UsageError(f"--until ({until}) is not after --since ({since})")
    return Selection(since, until, models, keys, backends, tags)


def format_option[F: Callable[..., Any]](command: F) -> F:
    """The option `--format table|json|jsonl`. The command gets `format`."""
    return click.option(
        "--format",
        type=click.Choice(["table", "json", "jsonl"]),
        default="table",
        show_default=True,
        help="table for people, json: one object, jsonl: one object a line.",
    )(command)


def print_json(format: str, whole: Any, rows: Iterable[Any]) -> None:
    """What a command found, for programs: `whole`, or with `--format jsonl` each of `rows` on a line."""
    import orjson

    if format == "json":
        click.echo(orjson.dumps(whole, option=orjson.OPT_INDENT_2).decode())
        return
    for row in rows:
        click.echo(orjson.dumps(row).decode())


def database_of(source: Path | None, config: Config) -> Path:
    """What `opened` opens."""
    if source is not None:
        return source
    return config.db_path if config.db_path.exists() or not (config.capture.dir / "spool").is_dir() else config.capture.dir


@contextmanager
def opened(source: Path | None, config_path: Path | None) -> Iterator[tuple[sqlite3.Connection, Config]]:
    """The database that is meant, read-only, and the configuration in force. Raises LlmtapError."""
    from llmtap_launcher.cli.common import load_config
    from llmtap_launcher.store.options import from_config
    from llmtap_launcher.store.source import open_source

    config = load_config(config_path)
    with open_source(database_of(source, config), from_config(config), lambda line: click.echo(line, err=True)) as conn:
        yield conn, config
