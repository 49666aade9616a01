"""`llmtap prune`: makes room in the database, through the running writer if there is one."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, load_config, user_errors
from llmtap_launcher.report import size
from llmtap_launcher.store import errand
from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.options import Retention, from_config
from llmtap_launcher.store.prune import Pruned, Pruner


@click.command()
@config_option
@click.option(
    "--days", type=click.FloatRange(min=0), metavar="N", help="Exchanges older than this go (default: store.retain_days)."
)
@click.option(
    "--bodies-days",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Texts older than this go (default: store.retain_bodies_days).",
)
@click.option(
    "--timings-days",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Arrival times of tokens older than this go (default: store.retain_timings_days).",
)
@click.option(
    "--max-gb",
    type=click.FloatRange(min=0),
    metavar="G",
    help="Then the oldest exchanges until it is smaller (default: store.max_gb).",
)
@click.option("--dry-run", is_flag=True, help="Only say what is due by age.")
def prune(
    config_path: Path | None,
    days: float | None,
    bodies_days: float | None,
    timings_days: float | None,
    max_gb: float | None,
    dry_run: bool,
) -> None:
    """Delete what is too old or too much from the database, and give the room back to the disk.

    The writer of `llmtap up` does this by itself by the configuration; this does it now, or by other ages. Statistics
    (usage_daily, latency_hist) stay. 0 means everything.

    \b
    Example:
      llmtap prune                    what the configuration says, now
      llmtap prune --bodies-days 7    texts of more than a week, the numbers stay
    """
    with user_errors():
        config = load_config(config_path)
        keep = from_config(config).retention
        keep = Retention(
            keep.timings_days if timings_days is None else timings_days,
            keep.bodies_days if bodies_days is None else bodies_days,
            keep.exchanges_days if days is None else days,
            keep.max_bytes if max_gb is None else round(max_gb * 1e9),
        )
        database = config.db_path
        if not database.exists():
            raise LlmtapError(f"{database}: no such database: nothing was captured yet")
        if dry_run:
            with closing(connect_ro(database)) as conn:
                due = Pruner(conn, keep).due()
            click.echo("due: " + ", ".join(f"{words} of {due[name]} exchanges" for name, words in _WORDS))
            return
        before = _bytes(database)
        done = _prune(config.capture.dir, database, keep)
        click.echo(
            f"{database}: pruned {done.exchanges} exchanges, texts of {done.bodies}, token times of {done.timings}, "
            f"{done.messages} messages; {size(before)} before, {size(_bytes(database))} now"
        )


_WORDS = (("timings", "token times"), ("bodies", "texts"), ("exchanges", "everything"))


def _prune(directory: Path, database: Path, keep: Retention) -> Pruned:
    """Here if there is no writer, else by it."""
    return Pruned(**errand.run(directory, database, "prune", asdict(keep), lambda w: asdict(w.prune(retention=keep))))


def _bytes(database: Path) -> int:
    return sum(path.stat().st_size for suffix in ("", "-wal") if (path := Path(f"{database}{suffix}")).exists())
