"""Web pages as clients: which may call the gateway from a browser (`server.cors_origins`).

A browser asks first (a preflight: OPTIONS, never with a key), and shows a page an answer only if a header says that it may.
Where this is on, both are the gateway's business and not the backend's. Errors bear the header too: without it a page could not
tell 429 from a dead server.
"""

from __future__ import annotations

from mitmproxy import http

_ASK, _METHOD = "access-control-request-headers", "access-control-request-method"
_MAX_AGE_S = "600"


class Cors:
    """Not a step: the chain asks it about every request, and before every answer."""

    name = "cors"

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)

    def origin(self, request: http.Request) -> str | None:
        """What the answer's access-control-allow-origin has to say; None: nothing."""
        origin = request.headers.get("origin")
        if origin is None:
            return None
        if self._any:
            return "*"
        return origin if origin.lower() in self._origins else None

    def preflight(self, request: http.Request) -> http.Response | None:
        """The answer to a browser's question; None when it is not one."""
        if request.method != "OPTIONS" or _METHOD not in request.headers or "origin" not in request.headers:
            return None
        headers = {"access-control-max-age": _MAX_AGE_S, "vary": "origin"}
        origin = self.origin(request)
        if origin is not None:
            headers["access-control-allow-origin"] = origin
            headers["access-control-allow-methods"] = "GET, POST, OPTIONS"
            asked = request.headers.get(_ASK)
            headers["access-control-allow-headers"] = asked if asked else "*"
        return http.Response.make(204, b"", headers)
