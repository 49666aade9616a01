"""`llmtap script-path`."""

from __future__ import annotations

import click

from llmtap_launcher import script_path as script


@click.command(name="script-path")
def script_path() -> None:
    """Print the path of the script for mitmproxy.

    \b
    Example:
      mitmdump -s "$(llmtap script-path)" --mode reverse:http://127.0.0.1:8081
    """
    click.echo(script.script_path())
