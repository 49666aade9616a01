"""Where requests are sent again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llmtap.core.config import Config
from llmtap.core.errors import LlmtapError
from llmtap_launcher.gateway_metrics import gateway_url
from llmtap_launcher.runtime import RunFolder


@dataclass(frozen=True, slots=True)
class Target:
    """A server. `base_url` ends in `/v1`. `records`: it is the gateway, which keeps exchanges itself."""

    name: str
    base_url: str
    api_key: str | None
    records: bool


def target_of(to: str | None, config: Config, key: str | None = None) -> Target:
    """`to`: the name of a backend (of the configuration, or of what `llmtap up` runs there), a base URL, None for the gateway.
    `key` is what the gateway or a URL gets; a backend gets its own (`api_key`). Raises LlmtapError for what is none of them."""
    state = RunFolder(config.capture.dir).running() or {}
    gateway = gateway_url(config, state)
    if to is None:
        return Target("gateway", _v1(gateway), key, True)
    if "://" in to:
        url = _checked(to)
        ours = _place(url) == _place(gateway)
        return Target("gateway" if ours else urlsplit(url).netloc, url, key, ours)
    urls = {backend["name"]: backend["url"] for backend in state.get("backends", [])}
    urls |= {backend.name: backend.url for backend in config.backends if backend.url is not None}
    if to not in urls:
        raise LlmtapError(f"--to {to}: neither a backend ({_names(urls)}) nor a URL like http://127.0.0.1:8081/v1")
    if not urls[to].startswith(("http://", "https://")):
        raise LlmtapError(
            f"--to {to}: {urls[to]} is reached through the gateway only: leave --to out, and name a model it serves"
        )
    secret = next((backend.api_key for backend in config.backends if backend.name == to), None)
    return Target(to, _v1(urls[to]), secret.get_secret_value() if secret is not None else None, False)


def _checked(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise LlmtapError(f"--to {text}: is no base URL like http://127.0.0.1:8081/v1")
    return _v1(text)


def _v1(url: str) -> str:
    url = url.rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"


def _place(url: str) -> tuple[str | None, int | None]:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in ("localhost", "::1") else parts.hostname
    return host, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _names(known: Mapping[str, Any] | Iterable[str]) -> str:
    return ", ".join(known) or "none is configured"
