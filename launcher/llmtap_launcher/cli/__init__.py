"""The `llmtap` command: a click group that imports a command's module only when that command is used.

Starting time counts (the writer and the simulated engines are commands too), so nothing heavy is imported here. A mistake of the
user's, which is any `LlmtapError`, ends as one line on stderr and exit status 1; wrong usage is click's own 2.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from llmtap import __version__
from llmtap.core.errors import LlmtapError

#: command -> module of this package and the name in it; the order is the order of `llmtap --help`
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "up"),
    "status": ("status", "status"),
    "top": ("top", "top"),
    "metrics": ("metrics", "metrics"),
    "check": ("check", "check"),
    "keys": ("keys", "keys"),
    "sim": ("sim", "sim"),
    "engine": ("engine", "engine"),
    "browse": ("browse", "browse"),
    "ingest": ("ingest", "ingest"),
    "analyze": ("analyze", "analyze"),
    "slow": ("slow", "slow"),
    "compare": ("compare", "compare"),
    "cost": ("cost", "cost"),
    "prune": ("prune", "prune"),
    "backup": ("backup", "backup"),
    "export": ("export", "export"),
    "replay": ("replay", "replay"),
    "import": ("import_", "import_"),
    "script-path": ("script_path", "script_path"),
}


class LazyGroup(click.Group):
    """A click group over `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, its module imported now; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our own errors become one line and exit status 1."""
        try:
            return super().invoke(ctx)
        except LlmtapError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="llmtap")
def cli() -> None:
    """Put it in front of vLLM: protects, measures, serves and harvests LLM traffic.

    \b
    Example:
      llmtap up --dry-run                          two simulated engines, no GPU needed
      llmtap up --backend http://127.0.0.1:8081    in front of a running server
    """


def main(prog_name: str = "llmtap") -> None:
    """Entry of the console script and of `python -m llmtap_launcher`. Does not return: exits 0 (ok), 1 (failed) or 2 (usage)."""
    cli.main(prog_name=prog_name)
