"""What the commands share: the `--config` option, loading, and how a user's mistake ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from llmtap.core import config_load
from llmtap.core.config import Config
from llmtap.core.errors import LlmtapError


def _resolve(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
    return config_load.resolve_path(value, os.environ, Path())


def config_option[F: Callable[..., Any]](command: F) -> F:
    """The option `--config FILE`. The command gets `config_path`: the file in force, or None for the built-in defaults."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        metavar="FILE",
        callback=_resolve,
        help="Configuration file.  [default: $LLMTAP_CONFIG, else ./llmtap.yaml, else built-in defaults]",
    )(command)


def load_config(config_path: Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of file, environment and `overrides` (dotted keys; None: not given). Raises ConfigError."""
    return config_load.load(config_path, os.environ, overrides or {})


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a `LlmtapError` into its text on stderr and exit status 1."""
    try:
        yield
    except LlmtapError as error:
        click.echo(str(error), err=True)
        raise click.exceptions.Exit(1) from error


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on the terminal, moved by calls with how much is done and how much there is; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
