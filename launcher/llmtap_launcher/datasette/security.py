"""What guards the pages: they show captured text, which is hostile, to a browser that also visits other sites.

Every answer carries a Content-Security-Policy without any inline script, so that even an escaping mistake runs nothing and loads
nothing. A request whose Host names a domain is refused: a web page could point a name of its own at 127.0.0.1 (DNS rebinding) and
read the captures from there; addresses and `localhost` cannot be rebound.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: 'unsafe-inline' for styles only: Datasette's own templates have <style> elements, and a style can neither run nor send anything
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", POLICY.encode("ascii")),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-robots-tag", b"noindex, nofollow"),
)
REFUSED = b"This page answers only under localhost or an IP address, not under a domain name.\n"


def host_allowed(host: str) -> bool:
    """Is a Host header's value an address or `localhost` (any port)? A missing one is: only tools send none."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def guard(app: App) -> App:
    """The ASGI application with both guards in front."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in HEADERS}
                kept = [(k, v) for k, v in message.get("headers", ()) if k.lower() not in names]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        host = b"".join(value for name, value in scope["headers"] if name == b"host").decode("latin-1")
        if host_allowed(host):
            await app(scope, receive, send_guarded)
            return
        await send_guarded({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": REFUSED})

    return guarded
