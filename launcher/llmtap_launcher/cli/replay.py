"""`llmtap replay`: captured requests sent again, and the replies compared."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, load_config, progress, user_errors
from llmtap_launcher.cli.selecting import format_option, print_json, selection_options, wanted_of, wanted_options

if TYPE_CHECKING:
    from llmtap.core.config import Config
    from llmtap_launcher.replay.send import Sent
    from llmtap_launcher.replay.target import Target

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOT_TO_CHANGE = ("model", "messages", "prompt", "stream")


def _changes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=VALUE` each, the value as JSON where it is some."""
    import orjson

    found: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", ctx, param)
        if name in _NOT_TO_CHANGE:
            raise click.BadParameter(f"{name} stays as it was sent (the model: --to-model)", ctx, param)
        try:
            found[name] = orjson.loads(value)
        except ValueError:
            found[name] = value
    return found


def _run_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _RUN.fullmatch(value):
        raise click.BadParameter(f"{value!r}: up to 64 letters, digits, dots, dashes and underscores", ctx, param)
    return value


@click.command()
@config_option
@click.option("--to", metavar="TARGET", help="A backend's name, or a base URL.  [default: the gateway]")
@click.option("--to-model", metavar="NAME", help="Model to ask.  [default: each request's own]")
@click.option("--set", "changes", multiple=True, callback=_changes, metavar="NAME=VALUE",
              help="Another value of a parameter (JSON; null takes it away): temperature=0. Repeatable.")  # fmt: skip
@click.option("--api-key", envvar="LLMTAP_KEY", metavar="KEY",
              help="For the gateway or the URL; a backend gets its own.  [env var: LLMTAP_KEY]")  # fmt: skip
@selection_options
@wanted_options("any", "what is stored as messages or a prompt")
@click.option(
    "--limit", type=click.IntRange(0), default=100, show_default=True, metavar="N", help="The newest N requests; 0: all."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=4, show_default=True, metavar="N", help="Requests at a time."
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, metavar="SECONDS",
              help="To the next byte of a reply.")  # fmt: skip
@click.option("--run", callback=_run_name, metavar="NAME", help="Name of the run; one that exists goes on.  [default: the time]")
@click.option("--report", is_flag=True, help="Send nothing: compare what --run has.")
@click.option("--dry-run", is_flag=True, help="Send nothing: say what would be sent.")
@click.option("--pairs", type=click.IntRange(0, 1000), default=3, show_default=True, metavar="N", help="Pairs to show in full.")
@format_option
def replay(
    config_path: Path | None, to: str | None, to_model: str | None, changes: dict[str, Any], api_key: str | None, limit: int,
    concurrency: int, timeout: float, run: str | None, report: bool, dry_run: bool, pairs: int, format: str, **given: Any,
) -> None:  # fmt: skip
    """Send captured requests again, to another model or backend, and compare the replies.

    Each goes out as its client sent it, but for the model and what --set changes; what came through another API goes as a chat.
    The replies are stored like any others, with the tags replay and replay:RUN and the metadata replay_of; then both
    sides are compared as llmtap compare does it. A run that was stopped goes on with the same --run: what it has an
    answer to is not sent again. Replays are not sent again themselves.

    Through the gateway keys, limits and routing hold as for everybody; straight to a backend or URL they do not.

    \b
    Example:
      llmtap replay --to-model llama-3.1-8b --since 7d --model "Qwen/*" --limit 200
      llmtap replay --to http://127.0.0.1:8082/v1 --to-model new --set temperature=0 --run try-new
      llmtap replay --run try-new --report --format json
    """
    if report and (dry_run or run is None):
        raise click.UsageError("--report goes with --run NAME, and not with --dry-run")
    with user_errors():
        from llmtap_launcher.export.options import Wanted
        from llmtap_launcher.replay.chosen import ENDPOINTS
        from llmtap_launcher.replay.target import target_of

        config = load_config(config_path)
        if run is not None and not dry_run:
            _catch_up(config, run)
        wanted = wanted_of(given, Wanted(finish_reasons=(), endpoints=ENDPOINTS))
        if not report:
            target = target_of(to, config, api_key)
            run = run or datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
            changes = {**({"model": to_model} if to_model else {}), **changes}
            if not _sent(config, target, wanted, run, limit or None, changes, concurrency, timeout, dry_run):
                return
        assert run is not None
        _compare(config, run, pairs, format)


def _catch_up(config: Config, run: str) -> None:
    """What a run that was stopped had got is in the database, not only in the spool."""
    from llmtap_launcher.replay.outcome import bring_in
    from llmtap_launcher.store.options import from_config

    if config.db_path.exists():
        bring_in(config.capture.dir, config.db_path, from_config(config), run, 0)


def _sent(
    config: Config, target: Target, wanted: Any, run: str, limit: int | None, changes: Mapping[str, Any], concurrency: int,
    timeout: float, dry_run: bool,
) -> bool:  # fmt: skip
    """Sends what is wanted and waits until the replies are stored; False after a dry run."""

    from llmtap_launcher.replay import chosen
    from llmtap_launcher.replay.outcome import bring_in, stored
    from llmtap_launcher.replay.send import Manner, send
    from llmtap_launcher.store.options import from_config
    from llmtap_launcher.store.source import open_source

    with open_source(config.db_path, from_config(config), lambda line: click.echo(line, err=True)) as conn:
        uids = chosen.chosen(conn, wanted, run, limit)
        had = stored(conn, run)
        if not uids and not had:
            raise LlmtapError("nothing that was captured fits this selection")
        if dry_run:
            _say_plan(chosen.requests(conn, uids, changes), target, run, len(uids))
            return False
        click.echo(f"run {run}: {len(uids)} requests to {target.name} ({target.base_url})", err=True)
        manner = Manner(run, config.capture.dir, config.capture.segment_mb, concurrency, timeout)
        with progress("replay") as tell:
            try:
                sent = asyncio.run(
                    send(chosen.requests(conn, uids, changes), target, manner, lambda sent: tell(sent.done, len(uids)))
                )
            except KeyboardInterrupt:
                raise LlmtapError(f"stopped; --run {run} goes on with the rest") from None
        _say(sent)
        if uids and not sent.answered:
            raise LlmtapError("no request was answered")
    wanted_in = had + sent.answered + sent.failed.total()
    have = bring_in(config.capture.dir, config.db_path, from_config(config), run, wanted_in)
    if have < wanted_in:
        click.echo(
            f"{config.db_path} has {have} of {wanted_in} replies so far; --run {run} --report compares them later", err=True
        )
    return True


def _compare(config: Config, run: str, pairs: int, format: str) -> None:
    from llmtap_launcher.analysis.compare_screen import show
    from llmtap_launcher.analysis.comparison import lines
    from llmtap_launcher.replay.outcome import compared
    from llmtap_launcher.store.options import from_config
    from llmtap_launcher.store.source import open_source

    with open_source(config.db_path, from_config(config), lambda line: click.echo(line, err=True)) as conn:
        made = compared(conn, run, pairs)
    if format != "table":
        print_json(format, made, [{"group": "run", "run": run, **made["replies"]}, *lines(made)])
        return
    show(made, str(config.db_path), sys.stdout)
    replies = made["replies"]
    alike = "" if replies["similarity"] is None else f", half of them alike to {replies['similarity']:.0%} of their words or more"
    click.echo(f"\nrun {run}: {replies['count']} replies, {replies['same']} the same to the last character{alike}")


def _say_plan(asked: Iterator[Any], target: Target, run: str, count: int) -> None:
    click.echo(f"run {run}: {count} requests to {target.name} ({target.base_url})")
    for one in asked:
        if one is not None:
            said = len(one.body.get("messages") or ()) or 1
            click.echo(f"{one.uid}  {one.endpoint}  {one.body.get('model', '')}  {said} message{'s'[: said != 1]}")


def _say(sent: Sent) -> None:
    for reason, count in sent.failed.most_common():
        click.echo(f"failed: {count} ({reason}): {shorten(sent.words[reason], 200, placeholder=' …')}", err=True)
    if sent.gone:
        click.echo(f"left out: {sent.gone} (their messages are not stored any more)", err=True)
