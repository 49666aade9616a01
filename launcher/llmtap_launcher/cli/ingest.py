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
from llmtap_launcher.store.lock import WriterLock, acquired
from llmtap_launcher.store.options import Options, from_config
from llmtap_launcher.store.rebuild import missing
from llmtap_launcher.store.rebuild import rebuild as rebuild_database
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
@click.option(
    "--rebuild",
    is_flag=True,
    help="Make the database again from DIR/archive; the old one is kept beside it. No writer may run.",
)
@click.option("--force", is_flag=True, help="With --rebuild: also when the archive no longer has all that the old database has.")
@click.option("--parent-pipe", is_flag=True, hidden=True, help="With --follow: end when standard input ends.")
def ingest(
    config_path: Path | None,
    directory: Path | None,
    database: Path | None,
    following: bool,
    rebuild: bool,
    force: bool,
    parent_pipe: bool,
) -> None:
    """Bring captured exchanges from the spool into the database.

    What `llmtap up` runs as its writer. Every record comes in exactly once, whatever is killed meanwhile; a file of the
    spool is deleted when all of it is in the database.

    \b
    Example:
      llmtap ingest                        what is there, once
      llmtap ingest --follow --dir DATA    as it comes
      llmtap ingest --rebuild              a new database from the archive
    """
    if rebuild and following:
        raise click.UsageError("--rebuild and --follow exclude each other")
    if force and not rebuild:
        raise click.UsageError("--force goes with --rebuild only")
    with user_errors():
        directory, database, options = _places(config_path, directory, database)
        if following:
            _follow(directory, database, options, parent_pipe)
        elif rebuild:
            _rebuild(directory, database, options, force)
        else:
            _once(directory, database, options)


def _places(config_path: Path | None, directory: Path | None, database: Path | None) -> tuple[Path, Path, Options]:
    """Capture folder, database, and what the configuration says of prices and keeping. A folder alone: nothing is ever pruned."""
    named = click.get_current_context().get_parameter_source("config_path") is ParameterSource.COMMANDLINE
    if directory is not None and not named:
        return directory, database or directory / "capture.db", Options()
    config = load_config(config_path, {"capture.dir": directory, "store.path": database})
    return config.capture.dir, config.db_path, from_config(config)


def _rebuild(directory: Path, database: Path, options: Options, force: bool) -> None:
    with WriterLock(directory) as lock:
        if not acquired(lock):
            raise LlmtapError(f"a writer (process {lock.holder()}) is at work in {directory}: stop it first (llmtap up runs one)")
        gone = missing(directory, database)
        if gone and not force:
            raise LlmtapError(
                f"{database}: up to {gone} exchanges in it are no longer in {directory / 'archive'} and would be left out: "
                "--force makes the new one all the same (the old one is kept)"
            )
        try:
            done = rebuild_database(directory, database, options, lambda line: click.echo(line, err=True))
        except (sqlite3.Error, OSError) as error:
            raise LlmtapError(f"{database}: not made again: {getattr(error, 'strerror', None) or error}") from error
    for name in done.damaged or ():
        click.echo(f"{name}: damaged, taken in as far as it can be read", err=True)
    kept = f"; the old one is {done.old}" if done.old is not None else ""
    click.echo(f"{database}: made again of {done.segments} files, {done.records} records, {done.bad} bad{kept}")


def _once(directory: Path, database: Path, options: Options) -> None:
    if not (directory / "spool").is_dir() and not database.exists():  # one of an earlier version is brought up to date
        raise LlmtapError(f"{directory}: there is no spool in it: nothing was captured there (--dir names another folder)")
    with WriterLock(directory) as lock:
        if not acquired(lock):
            raise LlmtapError(f"a writer (process {lock.holder()}) is already at work in {directory}: it brings everything in")
        with closing(Writer(directory, database, options=options)) as writer:
            try:
                writer.run_pass()
            except (sqlite3.Error, OSError, LlmtapError) as error:
                raise LlmtapError(explain(error, writer)) from error
            status = writer.status
    click.echo(f"{database}: {status.ingested_records} records ingested, {status.bad} bad, {status.lost} exchanges lost")


def _follow(directory: Path, database: Path, options: Options, parent_pipe: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with WriterLock(directory) as lock, closing(Stop(0 if parent_pipe else None)) as stop:
        stop.listen()
        waiting = False
        while not acquired(lock):
            if not waiting:
                log.info("waiting: another writer (process %s) is at work in %s", lock.holder(), directory)
                waiting = True
            if stop.wait(_LOCK_POLL_S):
                return
        log.info("writing %s", database)
        with closing(Writer(directory, database, options=options)) as writer:
            good = follow(writer, stop, StatusFile(directory))
        log.info("stopped: %d records ingested, %d bad", writer.status.ingested_records, writer.status.bad)
    if not good:
        raise LlmtapError(writer.status.error or "stopped in trouble")
