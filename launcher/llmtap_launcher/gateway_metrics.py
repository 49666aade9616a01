"""Asking a running gateway for its metrics snapshot, and finding out where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmtap.core.config import Config
from llmtap.core.errors import LlmtapError
from llmtap_launcher.health import reachable
from llmtap_launcher.runtime import RunFolder

PATH = "/internal/metrics"


class NoMetrics(LlmtapError):
    """No snapshot to be had; the message says why in one line."""


def gateway_url(config: Config, state: Mapping[str, Any]) -> str:
    """The base of the gateway that runs (`state`: what its launcher says, empty for none), else of the configuration."""
    server = config.server
    return str(state.get("urls", {}).get("gateway") or f"{server.scheme}://{reachable(server.host)}:{server.port}")


def snapshot_url(url: str | None, config: Config) -> str:
    """The address of the snapshot: `url` (a host and port, a base URL, or the whole address), else that of the gateway the
    launcher runs, else of the configuration. Raises NoMetrics for what is no address."""
    if url is None:
        base = gateway_url(config, RunFolder(config.capture.dir).running() or {})
    else:
        base = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(base)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port >= 0)
    except ValueError:
        valid = False
    if not valid:
        raise NoMetrics(f"{url} is no address of a gateway; give one like http://127.0.0.1:8000")
    base = base.rstrip("/").removesuffix("/metrics").removesuffix("/internal").removesuffix("/v1")
    return base + PATH


def fetch_snapshot(client: httpx.Client, url: str) -> dict[str, Any]:
    """The snapshot. Raises NoMetrics, with the reason in words a user can act on."""
    try:
        answer = client.get(url)
        if answer.status_code == 401:
            raise NoMetrics(f"{url} wants a key: give it with --key, or in LLMTAP_KEY")
        if answer.status_code == 404:
            raise NoMetrics(f"{url} does not exist: metrics.enabled is false there, or it is no llmtap gateway")
        if answer.status_code != 200:
            raise NoMetrics(f"{url} answers {answer.status_code}")
        found = answer.json()
        if not isinstance(found, dict) or not all(isinstance(f, dict) and "samples" in f for f in found.values()):
            raise ValueError
    except httpx.HTTPError as error:
        raise NoMetrics(f"no gateway answers at {url}: {str(error) or type(error).__name__}") from error
    except ValueError as error:
        raise NoMetrics(f"{url} is no metrics snapshot of llmtap") from error
    return found


def client_for(key: str | None) -> httpx.Client:
    """A client that presents `key`."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(headers=headers, timeout=10, trust_env=False)
