"""`llmtap browse`: Datasette on a capture database."""

from __future__ import annotations

import os
from pathlib import Path

import click

from llmtap.core import config_load
from llmtap.core.config import Datasette
from llmtap.core.errors import LlmtapError
from llmtap_launcher.datasette import command
from llmtap_launcher.health import reachable
from llmtap_launcher.ports import free_ports

#: with FILE no configuration is read, but its variable for the password counts
_PASSWORD = "LLMTAP_DATASETTE__PASSWORD"


class _WrongUsage(click.ClickException):
    """One line on stderr, exit status 2."""

    exit_code = 2


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", help="Port; 0 takes any free one (default: datasette.port, 8001)."
)
@click.option("--host", metavar="H", help="Address of this machine to listen on (default: datasette.host, 127.0.0.1).")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration (default: $LLMTAP_CONFIG, else ./llmtap.yaml; with FILE none unless named).",
)
def browse(file: Path | None, port: int | None, host: str | None, config_path: Path | None) -> None:
    """Browse captured requests in a web browser, until Ctrl-C.

    FILE is a capture database, of a running gateway or a copy from elsewhere, or the folder that has capture.db in it; it is
    only read. Default: the database of the configuration.

    \b
    Example:
      llmtap browse                        what this machine captures
      llmtap browse backup.db --port 0     a copy, on any free port
      LLMTAP_DATASETTE__PASSWORD=… llmtap browse --host 0.0.0.0
    """
    db, page, gateway = _chosen(file, config_path)
    host = page.host if host is None else host
    port = page.port if port is None else port
    password = page.password.get_secret_value() if page.password is not None else os.environ.get(_PASSWORD)
    if not command.is_loopback(host):
        try:
            command.check_host(host, password)
        except LlmtapError as error:
            raise _WrongUsage(str(error)) from error
    command.check_database(db)
    command.check_port(host, port)
    port = port or free_ports(1, host=host.strip("[]"))[0]
    argv = command.datasette_argv(db, host, port, password)
    url = command.base_url(host, port)
    click.echo(f"{db}: {url}/ (Ctrl-C stops)")
    # becomes Datasette: signals reach it, and nothing is left behind whatever ends it
    os.execve(argv[0], argv, command.datasette_env(password=password, pages=url, gateway=gateway))


def _chosen(file: Path | None, config_path: Path | None) -> tuple[Path, Datasette, str | None]:
    """The database, where to serve it, and the gateway it belongs to. A FILE needs no configuration, so a broken one is not in
    its way."""
    if file is not None and config_path is None:
        return _in_folder(file), Datasette(), None
    config = config_load.load(config_load.resolve_path(config_path, os.environ, Path.cwd()), os.environ, {})
    gateway = f"http://{reachable(config.server.host)}:{config.server.port}"
    if file is not None:
        return _in_folder(file), config.datasette, gateway
    if not config.db_path.exists():
        raise LlmtapError(f"{config.db_path}: nothing captured yet: start the gateway with `llmtap up`, or name a FILE")
    return config.db_path, config.datasette, gateway


def _in_folder(file: Path) -> Path:
    return file / "capture.db" if file.is_dir() else file
