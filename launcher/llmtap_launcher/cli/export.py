"""`llmtap export`: training data, requests to send again, raw rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, progress, user_errors
from llmtap_launcher.cli.selecting import opened, selection_options, source_option, wanted_of, wanted_options
from llmtap_launcher.export.formats import FORMATS, Format
from llmtap_launcher.export.options import Drawn, Shape, Wanted

if TYPE_CHECKING:
    from llmtap.core.config import Config
    from llmtap_launcher.export.redact import Redactor
    from llmtap_launcher.export.run import Job, Report

_SHARE = click.FloatRange(0, 1, min_open=True)


@click.command()
@click.argument("format_name", metavar="FORMAT", type=click.Choice(list(FORMATS)))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
              help="Where the rows go; it appears when all are written. - is standard output.")  # fmt: skip
@config_option
@source_option
@selection_options
@wanted_options("stop, tool_calls and their kin", "those of chats")
@click.option("--every-turn", is_flag=True, help="A row for every exchange, not only for the last of a conversation.")
@click.option("--duplicates", is_flag=True, help="Also conversations that are the same to the last word.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The newest N rows.")
@click.option(
    "--sample", type=_SHARE, default=1.0, metavar="SHARE", help="A part of the conversations, 0.1 is a tenth; always the same."
)
@click.option("--validation", type=click.FloatRange(0, 1, max_open=True), default=0.0, metavar="SHARE",
              help="Put this part of the conversations into FILE with .validation in its name.")  # fmt: skip
@click.option("--salt", default="", metavar="TEXT", help="Another --sample and --validation.")
@click.option("--reasoning", type=click.Choice(["drop", "keep", "inline"]), default="drop", show_default=True,
              help="keep: in reasoning_content (trl-*). inline: before the reply, in <think>.")  # fmt: skip
@click.option("--images", type=click.Choice(["data", "files", "drop", "skip"]), default="data", show_default=True,
              help="data: in URLs. files: beside FILE. drop: without pictures. skip: no such rows.")  # fmt: skip
@click.option(
    "--tool-args", type=click.Choice(["string", "object"]), help="Arguments of calls.  [default: object for trl-*, else string]"
)
@click.option("--no-tools", is_flag=True, help="Leave the definitions of tools out.")
@click.option(
    "--mark", is_flag=True, help="trl-sft, sharegpt: train: true or false on every reply (Axolotl: message_field_training)."
)
@click.option("--corrected", is_flag=True, help="Where somebody corrected the last reply, the correction in its place.")
@click.option("--score", metavar="NAME", help="Preferences and labels by this rating only.")
@click.option("--threshold", type=float, default=0.0, show_default=True, help="trl-kto: ratings above it are good.")
@click.option("--redact", "redacted", is_flag=True, help="Replace keys, e-mail addresses, telephone and card numbers.")
@click.option("--redact-kind", "kinds", multiple=True, type=click.Choice(["key", "email", "phone", "card"]),
              help="Replace only these. Repeatable.")  # fmt: skip
@click.option("--redact-pattern", "patterns", multiple=True, metavar="NAME=REGEX", help="Replace this too. Repeatable.")
@click.option("--parquet", is_flag=True, help="Write Parquet instead of JSON lines (needs pyarrow: llmtap[parquet]).")
def export(
    format_name: str, out: Path, config_path: Path | None, source: Path | None, parquet: bool, redacted: bool,
    kinds: tuple[str, ...], patterns: tuple[str, ...], **given: Any,
) -> None:  # fmt: skip
    """Write captured conversations as training data.

    \b
    Formats:
      openai-sft openai-dpo trl-sft trl-prompt-completion trl-preference trl-kto sharegpt alpaca
      batch   requests, for OpenAI's Batch API and vllm run-batch
      raw     everything there is of every exchange

    One row a conversation: its last turn, which holds all before it. Replies that were cut off or failed are left out
    unless --outcome and --finish-reason say otherwise (batch and raw take all). What does not fit into a format is left
    out and counted. The database is only read; a line about the export goes into its table exports.

    \b
    Example:
      llmtap export openai-sft -o train.jsonl --since 30d --rating up --validation 0.05 --redact
      llmtap export trl-preference -o pairs.jsonl --model 'qwen*'
      llmtap export raw -o - --sql "SELECT id FROM exchanges WHERE duration_ms > 10000" | jq .uid
    """
    from llmtap_launcher.export.redact import Redactor, own_patterns
    from llmtap_launcher.export.run import export as run

    with user_errors():
        job = _job(FORMATS[format_name], out, parquet, given)
        redactor: Redactor | None = None
        if redacted or kinds or patterns:
            wanted = (
                frozenset(kinds) if kinds else frozenset({"key", "email", "phone", "card"} if redacted or not patterns else ())
            )
            redactor = Redactor(wanted, own_patterns(patterns))
        with opened(source, config_path) as (conn, config), progress(format_name) as tell:
            report = run(conn, job, redactor, tell)
            note = _note(conn, config, job, report) if report.rows else None
        _say(job, report, redactor is not None, note)


def _job(form: Format, out: Path, parquet: bool, given: dict[str, Any]) -> Job:
    from llmtap_launcher.export.run import Job

    to_stdout = str(out) == "-"
    if to_stdout and (parquet or given["validation"] or given["images"] == "files"):
        raise click.UsageError("standard output takes neither Parquet nor a second file nor pictures: give a file to -o")
    if given["reasoning"] not in form.reasoning:
        raise click.UsageError(f"{form.name} has no place for reasoning: --reasoning {' or '.join(form.reasoning)}")
    if given["mark"] and form.name not in ("trl-sft", "sharegpt"):
        raise click.UsageError("--mark goes with trl-sft and sharegpt; openai-sft has a weight on every reply")
    if parquet and given["tool_args"] == "object":
        raise click.UsageError("in Parquet the arguments of tools are text: --tool-args string")
    plain = form.kind == "exchange"
    shape = Shape(
        given["reasoning"],
        given["images"] if form.pictures or given["images"] != "data" else "skip",
        "string" if parquet else given["tool_args"] or form.tool_args,
        not given["no_tools"],
        given["mark"],
        given["corrected"],
    )
    drawn = Drawn(given["every_turn"], given["duplicates"], given["validation"], given["sample"], given["salt"], given["limit"])
    wanted = wanted_of(given, Wanted(outcomes=(), finish_reasons=(), endpoints=()) if plain else Wanted())
    return Job(form, None if to_stdout else out, wanted, shape, drawn, given["score"], given["threshold"], parquet)


def _note(conn: Any, config: Config, job: Job, report: Report) -> str | None:
    """Into the table `exports`, when it is the database of a capture folder (a copy stays as it is)."""
    from llmtap_launcher.export.manifest import keep

    if job.out is None:
        return None
    database = Path(conn.execute("PRAGMA database_list").fetchone()[2])
    own = config.db_path.absolute()
    directory = config.capture.dir if database == own.resolve() else database.parent
    if not (directory / "spool").is_dir():
        return None
    report.files = [replace(file, name=str(Path(file.name).absolute())) for file in report.files]
    return keep(directory, database, report.manifest(job))


def _say(job: Job, report: Report, redacted: bool, note: str | None) -> None:
    """What was written, left out and replaced; on stderr, as rows may be on stdout."""
    for file in report.files:
        if file.name != "-":
            click.echo(
                f"{job.out.with_name(Path(file.name).name) if job.out else file.name}: {file.rows} rows, sha256 {file.sha256}",
                err=True,
            )
    skipped = {
        "turns that a later turn repeats": report.superseded,
        "the same conversation again": report.duplicates,
        **dict(sorted(report.left_out.items(), key=lambda item: -item[1])),
    }
    for reason, count in skipped.items():
        if count:
            click.echo(f"left out: {count} ({reason})", err=True)
    if report.pictures:
        click.echo(f"pictures: {report.pictures} files", err=True)
    if redacted:
        words = ", ".join(f"{count} {kind}" for kind, count in sorted(report.redacted.items())) or "nothing"
        click.echo(f"redacted: {words}", err=True)
    if note is not None:
        click.echo(f"not noted in the table exports: {note}", err=True)
    if not report.rows:
        raise LlmtapError(
            "no row was written, and no file: nothing that was captured fits this selection "
            "(replies that were cut off or failed fit only with --finish-reason or --outcome)"
        )
