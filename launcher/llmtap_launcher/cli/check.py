"""`llmtap check`: says whether the configuration is valid, and what is wrong with it."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from llmtap.core.config import Backend, Config
from llmtap.core.config_advice import advice
from llmtap.core.config_dump import masked, show_path
from llmtap.core.errors import ConfigError
from llmtap_launcher.cli.common import config_option, load_config, user_errors


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--print", "print_config", is_flag=True, help="Print the configuration in force, secrets masked.")
def check(config_path: Path | None, as_json: bool, print_config: bool) -> None:
    """Validate the configuration: file, environment and defaults.

    Prints a summary, and warnings about what is valid but risky. What is wrong is said with file, line, key and how to
    mend it; the exit status is 1 then.

    \b
    Example:
      llmtap check --config llmtap.yaml
      llmtap check --print                 the configuration in force
    """
    try:
        config = load_config(config_path)
    except ConfigError as error:
        if not as_json:
            with user_errors():
                raise
        click.echo(json.dumps(_failure(config_path, error), indent=2))
        raise click.exceptions.Exit(1) from error
    if as_json:
        click.echo(json.dumps(_success(config_path, config, print_config), indent=2))
        return
    if print_config:
        click.echo(_yaml(masked(config)), nl=False)
    else:
        click.echo(f"{_name(config_path)}: ok")
        for label, value in summary(config):
            click.echo(f"  {label:<10} {value}")
    for warning in advice(config):
        click.echo(f"warning: {warning}", err=True)


def _name(config_path: Path | None) -> str:
    return "built-in defaults" if config_path is None else str(config_path)


def _listening(config: Config) -> str:
    host = config.server.host
    return f"{config.server.scheme}://{f'[{host}]' if ':' in host else host}:{config.server.port}"


def features(config: Config) -> list[str]:
    """What is switched on, by name of its section (`web` and `request_log` by key)."""
    switches = {
        "web": config.server.web,
        "auth": config.auth.enabled,
        "rate_limit": config.rate_limit.enabled,
        "cache": config.cache.enabled,
        "single_flight": config.single_flight.enabled,
        "batching": config.batching.enabled,
        "capture": config.capture.enabled,
        "datasette": config.datasette.enabled,
        "metrics": config.metrics.enabled,
        "request_log": config.logging.request_log,
    }
    return [name for name, on in switches.items() if on]


def _backend(backend: Backend) -> str:
    what = f" starts {backend.launch.engine} {backend.launch.model}" if backend.launch is not None else ""
    return f"{backend.name}{what}" + (f" at {backend.url}" if backend.url is not None else "")


def summary(config: Config) -> list[tuple[str, str]]:
    """What a reader wants to see confirmed, as (label, text)."""
    rows = [("listening", _listening(config))]
    rows += [("backend", _backend(backend)) for backend in config.backends]
    if config.capture.enabled:
        rows.append(("captures", show_path(config.capture.dir)))
    rows.append(("on", ", ".join(features(config)) or "nothing"))
    return rows


def _success(config_path: Path | None, config: Config, print_config: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ok": True,
        "file": None if config_path is None else str(config_path),
        "problems": [],
        "warnings": [{"key": warning.key, "message": warning.message} for warning in advice(config)],
        "listening": _listening(config),
        "backends": [
            {
                "name": backend.name,
                "url": backend.url,
                "kind": backend.kind,
                "models": None if backend.models is None else list(backend.models),
                "engine": None if backend.launch is None else backend.launch.engine,
            }
            for backend in config.backends
        ],
        "features": features(config),
    }
    return result | ({"config": masked(config)} if print_config else {})


def _failure(config_path: Path | None, error: ConfigError) -> dict[str, Any]:
    problems = [{"source": p.origin.source, "line": p.origin.line, "key": p.key, "message": p.message} for p in error.problems]
    return {"ok": False, "file": None if config_path is None else str(config_path), "problems": problems}


def _yaml(data: dict[str, Any]) -> str:
    out = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 1000
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.dump(data, out)
    return out.getvalue()
