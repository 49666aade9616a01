"""`llmtap ingest`: the writer, spool segments into SQLite."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import click
from click.core import ParameterSource

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, load_config, user_errors
from llmtap_launcher.store.follow import Stop, explain, follow
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.status import StatusFile
from llmtap_launcher.store.writer import Writer

log = logging.getLogger("llmtap.writer")

_LOCK_POLL_S = 0.2


@click.command()
@config_option
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Capture folder; without --config nothing else is read (default: capture.dir).",
)
@click.option(
    "--db",
    "database",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The SQLite file (default: store.path, else DIR/capture.db).",
)
@click.option(
    "--follow",
    "following",
    is_flag=True,
    help="Go on as records come, until SIGTERM or Ctrl-C; waits while another writer is at work.",
)
@click.option("--parent-pipe", is_flag=True, hidden=True, help="With --follow: end when standard input ends.")
def ingest(config_path: Path | None, directory: Path | None, database: Path | None, following: bool, parent_pipe: bool) -> None:
    """Bring captured exchanges from the spool into the database.

    What `llmtap up` runs as its writer. Every record comes in exactly once, whatever is killed meanwhile; a file of the
    spool is deleted when all of it is in the database.

    \b
    Example:
      llmtap ingest                        what is there, once
      llmtap ingest --follow --dir DATA    as it comes
    """
    with user_errors():
        directory, database = _places(config_path, directory, database)
        if following:
            _follow(directory, database, parent_pipe)
        else:
            _once(directory, database)


def _places(config_path: Path | None, directory: Path | None, database: Path | None) -> tuple[Path, Path]:
    named = click.get_current_context().get_parameter_source("config_path") is ParameterSource.COMMANDLINE
    if directory is not None and not named:
        return directory, database or directory / "capture.db"
    config = load_config(config_path, {"capture.dir": directory, "store.path": database})
    return config.capture.dir, config.db_path


def _once(directory: Path, database: Path) -> None:
    if not (directory / "spool").is_dir():
        raise LlmtapError(f"{directory}: there is no spool in it: nothing was captured there (--dir names another folder)")
    with WriterLock(directory) as lock:
        if not _acquired(lock):
            raise LlmtapError(f"a writer (process {lock.holder()}) is already at work in {directory}: it brings everything in")
        with closing(Writer(directory, database)) as writer:
            try:
                writer.run_pass()
            except (sqlite3.Error, OSError, LlmtapError) as error:
                raise LlmtapError(explain(error, writer)) from error
            status = writer.status
    click.echo(f"{database}: {status.ingested_records} records ingested, {status.bad} bad, {status.lost} exchanges lost")


def _follow(directory: Path, database: Path, parent_pipe: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with WriterLock(directory) as lock, closing(Stop(0 if parent_pipe else None)) as stop:
        stop.listen()
        waiting = False
        while not _acquired(lock):
            if not waiting:
                log.info("waiting: another writer (process %s) is at work in %s", lock.holder(), directory)
                waiting = True
            if stop.wait(_LOCK_POLL_S):
                return
        log.info("writing %s", database)
        with closing(Writer(directory, database)) as writer:
            good = follow(writer, stop, StatusFile(directory))
        log.info("stopped: %d records ingested, %d bad", writer.status.ingested_records, writer.status.bad)
    if not good:
        raise LlmtapError(writer.status.error or "stopped in trouble")


def _acquired(lock: WriterLock) -> bool:
    try:
        return lock.acquire()
    except OSError as error:
        raise LlmtapError(f"{lock.path}: {error.strerror}: make the folder writable for this user") from error
