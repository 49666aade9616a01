"""What guards the pages: they show captured text, which is hostile, to a browser that also visits other sites.

Every answer carries a Content-Security-Policy without any inline script, so that even an escaping mistake runs nothing and loads
nothing. A request whose Host names a domain is refused: a web page could point a name of its own at 127.0.0.1 (DNS rebinding) and
read the captures from there; addresses and `localhost` cannot be rebound. With a password every page wants it (HTTP Basic).
"""

from __future__ import annotations

import base64
import hmac
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
#: formats of attachments that are shown; SVG is not one of them, it can run scripts
PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
PICTURE_POLICY = "default-src 'none'; sandbox"
_CHALLENGE = (b"www-authenticate", b'Basic realm="llmtap captures", charset="UTF-8"')
LOGIN = b"These pages want their password (any user name).\n"
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


def logged_in(authorization: str, password: str) -> bool:
    """Does an Authorization header (Basic) carry the password? The user name is free."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = base64.b64decode(encoded, validate=True)
    except ValueError:
        return False
    return hmac.compare_digest(given.partition(b":")[2], password.encode())


def guard(app: App, password: str | None = None) -> App:
    """The ASGI application with all guards in front. `password`: every page wants it; then it answers under any name, too
    (a page that points its own name here has no password to give)."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message.get("headers", ())]  # pairs of any kind: ASGI says iterables
                if (b"content-security-policy", PICTURE_POLICY.encode()) in headers:  # stricter than ours
                    ours = tuple(header for header in HEADERS if header[0] != b"content-security-policy")
                else:
                    ours = HEADERS
                names = {name for name, _ in ours}
                kept = [(k, v) for k, v in headers if k.lower() not in names]
                message = {**message, "headers": [*kept, *ours]}
            await send(message)

        host = b"".join(value for name, value in scope["headers"] if name == b"host").decode("latin-1")
        if password is not None:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
            if not logged_in(given, password):
                headers = [(b"content-type", b"text/plain"), _CHALLENGE]
                await send_guarded({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": LOGIN})
                return
        elif not host_allowed(host):
            await send_guarded({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": REFUSED})
            return
        await app(scope, receive, send_guarded)

    return guarded
