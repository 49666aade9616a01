"""Warnings about a configuration that is valid: what works, but hardly as meant or not as safe as its writer may think."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from llmtap.core.config import Config

#: why a start is refused
EXPOSED = (
    "{host} is reachable from other machines and auth is off; listen on 127.0.0.1, turn auth on (`llmtap keys new NAME`), "
    "or insist with --insecure (server.insecure: true)"
)


@dataclass(frozen=True, slots=True)
class Advice:
    """One warning: the key it is about and what to say."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on `host`."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def advice(config: Config) -> Iterator[Advice]:
    """The warnings for `config`, in the order of its sections."""
    server = config.server
    if not is_loopback(server.host) and not config.auth.enabled:
        yield Advice(
            "server.host",
            f"{server.host} is reachable from other machines and auth is off: "
            + (
                f"whoever reaches port {server.port} can use the backends; put a firewall in front"
                if server.insecure
                else "the gateway will not start; use 127.0.0.1, turn auth on, or say server.insecure (--insecure)"
            ),
        )
    if not config.backends:
        yield Advice("backends", "none: every request will be answered 503; add one, or start with `llmtap up --backend URL`")
    urls: dict[str, str] = {}
    for index, backend in enumerate(config.backends):
        if backend.url is None:
            continue
        key = f"backends[{index}].url"
        if _is_gateway(backend.url, server.port):
            yield Advice(key, f"is where the gateway itself listens (server.port {server.port}); one of the two must move")
        elif backend.url in urls:
            yield Advice(key, f"is the URL of backend {urls[backend.url]} too: one server, counted as two")
        urls.setdefault(backend.url, backend.name)
    if config.auth.enabled and not config.auth.keys:
        yield Advice("auth.keys", "none: every request will be answered 401; `llmtap keys new NAME` makes one")
    for index, client in enumerate(config.auth.keys):
        if client.key is not None:
            yield Advice(
                f"auth.keys[{index}].key",
                "is in clear: whoever reads the configuration has the key; `llmtap keys new NAME` prints one with its key_sha256",
            )
    if config.auth.keys and not config.auth.enabled:
        yield Advice("auth.keys", "have no effect while auth.enabled is false: no key is demanded")
    for index, client in enumerate(config.auth.keys):
        if client.budget_usd is not None and config.auth.enabled:
            if not config.capture.enabled:
                yield Advice(f"auth.keys[{index}].budget_usd", "is forgotten at every restart while capture.enabled is false")
            if not config.prices:
                yield Advice(
                    f"auth.keys[{index}].budget_usd",
                    "counts only models with a public price while there are no `prices`: what you serve yourself costs nothing",
                )
    if not config.rate_limit.enabled:
        for index, client in enumerate(config.auth.keys):
            if client.rate_limit is not None or client.tokens_per_minute is not None:
                yield Advice(f"auth.keys[{index}]", "has limits that have no effect while rate_limit.enabled is false")
    elif config.rate_limit.storage == "memory://" and config.server.workers > 1:
        yield Advice(
            "rate_limit.storage",
            f"memory:// counts in each of the {config.server.workers} workers by itself: together they let through "
            f"{config.server.workers} times the limit; use redis://HOST:PORT/DB",
        )
    limited = [index for index, client in enumerate(config.auth.keys) if client.max_concurrency is not None]
    if limited and config.auth.enabled and config.server.workers > 1:
        yield Advice(
            f"auth.keys[{limited[0]}].max_concurrency",
            f"counts in each of the {config.server.workers} workers by itself: together they let through more",
        )
    if config.datasette.enabled and config.capture.enabled and not is_loopback(config.datasette.host):
        yield Advice(
            "datasette.host",
            f"{config.datasette.host} is reachable from other machines: whoever reaches port {config.datasette.port} can read "
            "every recorded prompt; use 127.0.0.1",
        )
    if not config.capture.enabled and config.capture.required:
        yield Advice("capture.required", "has no effect while capture.enabled is false")


def _is_gateway(url: str, port: int) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and parts.port == port and is_loopback(parts.hostname or "")
