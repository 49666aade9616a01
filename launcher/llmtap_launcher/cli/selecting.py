"""The options by which commands choose exchanges (of which database, from when to when, of which model, key, backend, tag), and
how they print what programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtap_launcher.selection import Selection, SelectionError, parse_moment

if TYPE_CHECKING:
    import sqlite3

    from llmtap.core.config import Config
    from llmtap_launcher.export.options import Wanted


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


def wanted_options[F: Callable[..., Any]](finish_reasons: str, endpoints: str) -> Callable[[F], F]:
    """`--outcome --finish-reason --endpoint --rating --min-tokens --max-tokens --sql`; both arguments say what holds without an
    option. The command gets what `wanted_of` takes."""
    options = (
        click.option(
            "--outcome", "outcomes", multiple=True, metavar="NAME",
            help="Outcome of the exchange, or any. Repeatable.  [default: ok, cached]",
        ),
        click.option(
            "--finish-reason", "finish_reasons", multiple=True, metavar="NAME",
            help=f"Why the reply ended, or any. Repeatable.  [default: {finish_reasons}]",
        ),
        click.option(
            "--endpoint", "endpoints", multiple=True, metavar="NAME",
            help=f"chat, messages, responses, completions …; any. Repeatable.  [default: {endpoints}]",
        ),
        click.option(
            "--rating", "ratings", multiple=True, metavar="CONDITION",
            help="up, down, NAME>=NUMBER or NAME=WORD. Repeatable: all must hold.",
        ),
        click.option("--min-tokens", type=click.IntRange(0), metavar="N", help="Of prompt and reply together, at least."),
        click.option("--max-tokens", type=click.IntRange(0), metavar="N", help="At most."),
        click.option(
            "--sql", metavar="QUERY", help="Only what this query names by a column id or uid: SELECT id FROM exchanges WHERE …"
        ),
    )  # fmt: skip

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def wanted_of(given: Mapping[str, Any], default: Wanted) -> Wanted:
    """What those options and `selection_options` want; `default`: outcomes, finish reasons and endpoints of a command."""
    return replace(
        default,
        selection=selected(*(given[name] for name in ("since", "until", "models", "keys", "backends", "tags"))),
        outcomes=_names(given["outcomes"], default.outcomes),
        finish_reasons=_names(given["finish_reasons"], default.finish_reasons),
        endpoints=_names(given["endpoints"], default.endpoints),
        **{name: given[name] for name in ("ratings", "min_tokens", "max_tokens", "sql")},
    )


def _names(given: Sequence[str], default: Sequence[str]) -> Sequence[str]:
    if "any" in given:
        return ()
    return given or default


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
