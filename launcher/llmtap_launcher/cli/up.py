"""`llmtap up`."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import click

from llmtap.core.config import Backend, Config, Launch
from llmtap.core.config_advice import EXPOSED, advice, is_loopback
from llmtap.core.errors import ConfigError
from llmtap_launcher.cli.common import config_option, load_config

NOTHING_TO_SERVE = """nothing to serve; one of:
  llmtap up --dry-run            two simulated engines, no GPU needed
  llmtap up --backend URL        in front of a server that runs
  llmtap up --model MODEL        start vLLM for a model
or name backends in llmtap.yaml (one without any waits for POST /api/v1/inference/up)"""


@click.command()
@config_option
@click.option("--dry-run", is_flag=True, help="Two simulated engines, a and b, serving sim-small.")
@click.option("--model", metavar="M", help="Start an engine for this model.")
@click.option("--engine", type=click.Choice(["vllm", "sim"]), default="vllm", show_default=True, help="What --model starts.")
@click.option("--backend", "urls", multiple=True, metavar="URL", help="A server that runs already; may be repeated.")
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", help="The gateway's port; 0 takes any free one.  [default: 8000]"
)
@click.option("--web", is_flag=True, help="Run mitmweb, for interactive inspection.")
@click.option("--insecure", is_flag=True, help="Listen for other machines although no key is demanded.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Gateway processes sharing the port.")
def up(
    config_path: Path | None,
    dry_run: bool,
    model: str | None,
    engine: str,
    urls: tuple[str, ...],
    port: int | None,
    web: bool,
    insecure: bool,
    workers: int | None,
) -> None:
    """Start everything: backends it owns, gateway, writer, Datasette.

    Prints a table of URLs when ready. Ctrl-C or SIGTERM stops it all in reverse order, running streams first drained;
    once more stops at once. --dry-run, --backend and --model take the place of the configuration's backends.

    \b
    Example:
      llmtap up --dry-run
      llmtap up --backend http://127.0.0.1:8081 --port 9000
      llmtap up --model Qwen/Qwen2.5-1.5B-Instruct
    """
    if dry_run and (model or urls):
        raise click.UsageError("--dry-run brings its own backends; leave out --model and --backend")
    overrides: dict[str, Any] = {
        "server.port": port,
        "server.workers": workers,
        "server.web": web or None,
        "server.insecure": insecure or None,
    }

    def load() -> Config:
        return with_backends(load_config(config_path, overrides), dry_run=dry_run, model=model, engine=engine, urls=urls)

    config = load()
    # with a file one may begin empty and start engines over the management API
    if not config.backends and not (config_path is not None and config.management.enabled):
        raise click.UsageError(NOTHING_TO_SERVE)
    if not (config.auth.enabled or config.server.insecure or is_loopback(config.server.host)):
        raise ConfigError(EXPOSED.format(host=config.server.host))
    for warning in advice(config):
        click.echo(f"warning: {warning}", err=True)
    # what follows is heavy, and of no use to --help
    from llmtap_launcher.plan import decide
    from llmtap_launcher.reconfigure import Source
    from llmtap_launcher.session import Session

    async def run() -> None:
        source = Source(config_path, config, load) if config_path is not None else None
        await Session(decide(config), secrets.token_hex(8), say=click.echo, source=source).run()

    asyncio.run(run())


def with_backends(config: Config, *, dry_run: bool, model: str | None, engine: str, urls: tuple[str, ...]) -> Config:
    """The configuration with the command line's backends, if it names any. Raises ConfigError."""
    if dry_run:
        return config.with_sims()
    if not model and not urls:
        return config
    config = config.with_urls(urls)
    if model:
        launch = Launch.model_validate({"engine": engine, "model": model})
        config = config.model_copy(update={"backends": (*config.backends, Backend(name=engine, launch=launch))})
    return config
