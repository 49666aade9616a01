"""`llmtap import`: history from elsewhere into the capture database."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import click

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, load_config, user_errors
from llmtap_launcher.importing.run import Imported, run
from llmtap_launcher.store.follow import explain
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.options import from_config
from llmtap_launcher.store.writer import Writer


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@config_option
@click.option("--dir", "directory", type=click.Path(path_type=Path), metavar="DIR", help="Capture folder (default: capture.dir).")
@click.option("--key", "key_name", metavar="NAME", help="Name of the API key, for exchanges that have none.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag for exchanges that have none. Repeatable.")
def import_(
    files: tuple[Path, ...], config_path: Path | None, directory: Path | None, key_name: str | None, tags: tuple[str, ...]
) -> None:
    """Take logs of other tools into the capture database.

    Which kind a file is, its content tells: request logs in JSON lines (timestamp, request_id, model, messages, response,
    parameters, latency_ms, error, metadata), LiteLLM's logs (StandardLoggingPayload, spend logs), results of OpenAI and
    vLLM batches together with their input file, HAR, mitmproxy's flow files; packed by gzip or not. A folder stands for
    the files in it.

    Running it again changes nothing. Lines that are no exchange are told with their number and kept in
    quarantine.jsonl; they stop nothing.

    \b
    Example:
      llmtap import ./logs/vllm
      llmtap import batch_input.jsonl batch_output.jsonl --tag nightly
      llmtap import session.har traffic.flow
    """
    with user_errors():
        config = load_config(config_path, {"capture.dir": directory})
        folder, database = config.capture.dir, config.db_path
        now_us = time.time_ns() // 1000
        with WriterLock(folder) as lock:
            try:
                mine = lock.acquire()
            except OSError as error:
                raise LlmtapError(f"{lock.path}: {error.strerror}: make the folder writable for this user") from error
            if not mine:
                done = run(files, folder, database, key_name=key_name, tags=tags, at_us=now_us)
            else:
                with closing(Writer(folder, database, options=from_config(config))) as writer:
                    try:
                        writer.run_pass()  # the database is there, so what is known can be told
                        done = run(
                            files, folder, database, key_name=key_name, tags=tags, at_us=now_us, on_segment=lambda: _pass(writer)
                        )
                        writer.run_pass()
                    except (sqlite3.Error, OSError) as error:
                        raise LlmtapError(explain(error, writer)) from error
        _say(done, folder, database, mine)
        days = config.store.retain_days
        if days and done.oldest_us is not None and done.oldest_us < now_us - days * 86_400_000_000:
            click.echo(
                f"some are older than store.retain_days ({days:g} days): the writer of llmtap up will prune them; "
                "0 keeps everything",
                err=True,
            )
        if not done.stored and not done.known:
            raise LlmtapError("nothing was imported: no exchange was found in these files")


def _pass(writer: Writer) -> None:
    writer.run_pass()


def _say(done: Imported, folder: Path, database: Path, stored: bool) -> None:
    for problem in done.shown:
        where = f"{problem.file}:{problem.number}" if problem.number else problem.file
        click.echo(f"{where}: {problem.reason}", err=True)
    if done.problems > len(done.shown):
        click.echo(f"… and {done.problems - len(done.shown)} more", err=True)
    if done.problems:
        click.echo(f"{done.problems} not taken in: see {folder / 'quarantine.jsonl'}", err=True)
    more = [f"{done.known} known before"] if done.known else []
    more += [f"{done.passed_over} requests to other paths passed over"] if done.passed_over else []
    where = str(database) if stored else f"{folder / 'spool'} (the writer at work takes them into the database)"
    click.echo(f"{where}: {done.stored} exchanges imported" + "".join(f", {words}" for words in more))
