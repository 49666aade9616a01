"""`llmtap keys`: keys for clients."""

from __future__ import annotations

import json
import secrets
from hashlib import sha256
from typing import Any

import click
from pydantic import ValidationError

from llmtap.core.config import Key
from llmtap.core.errors import ConfigError

PREFIX = "sk-llmtap-"


@click.group()
def keys() -> None:
    """Keys that clients have to show (auth.keys).

    \b
    Example:
      llmtap keys new production
    """


@keys.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def new(name: str, as_json: bool) -> None:
    """Make a key for NAME: prints the key, once, and its line for the configuration.

    The key is stored nowhere; the configuration holds its SHA-256. A running gateway takes the line up without a restart.

    \b
    Example:
      llmtap keys new production
    """
    key = PREFIX + secrets.token_urlsafe(32)
    entry: dict[str, Any] = {"name": name, "key_sha256": sha256(key.encode()).hexdigest()}
    try:
        Key.model_validate(entry)
    except ValidationError as error:
        raise ConfigError(f"NAME {error.errors(include_input=False)[0]['msg'].removeprefix('Value error, ')}") from None
    if as_json:
        click.echo(json.dumps({"key": key, **entry}))
        return
    click.echo(key)
    click.echo("\nGive it to the client; it is not shown again. For llmtap.yaml, under auth.keys (and auth.enabled: true):\n")
    click.echo(f'    - {{name: {json.dumps(name)}, key_sha256: "{entry["key_sha256"]}"}}')
