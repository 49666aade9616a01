"""`llmtap status`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import click

from llmtap_launcher.cli.common import config_option, load_config
from llmtap_launcher.overview import gather, sections
from llmtap_launcher.report import print_table


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def status(config_path: Path | None, as_json: bool) -> None:
    """Show what runs: backends, health, in-flight, waiting, spool lag, database size.

    Looks at the data folder of the configuration (capture.dir). The exit status is 1 when nothing runs there.

    \b
    Example:
      llmtap status
      llmtap status --json
    """
    config = load_config(config_path)
    found = asyncio.run(gather(config))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    if found is None:
        message = (
            f"nothing runs on {config.capture.dir.absolute()}: neither a launcher nor a gateway on port {config.server.port}"
        )
        raise click.ClickException(message)
    if as_json:
        return
    for index, (header, rows) in enumerate(sections(found)):
        if index:
            click.echo()
        print_table(sys.stdout, rows, header=header)
