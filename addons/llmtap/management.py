"""The way to the management API: `/api/v1/*`, `/api/docs` and `/api/openapi.json` are the launcher's, reached over a UNIX socket.

Who may: with `auth` off and no `management.keys`, whoever is on this machine and is no web page of somebody else's (the address,
Host and Origin of the request tell). Else the keys that `management.keys` names; any valid key may look (GET) where auth is on.
`/api/v1/exchanges/*` (ratings, tags) manages nothing: it is for whoever may ask for completions, of their own ones.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from http.client import HTTPException, HTTPResponse
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from mitmproxy import http

from llmtap.core.config import Config
from llmtap.core.errors import ApiError, Forbidden, NoHealthyBackend, NotFound, Unauthorized, error_body
from llmtap.core.sockets import CLIENT_HEADER
from llmtap.policy.keys import Client, Keyring, take

_RATED = "/api/v1/exchanges/"
_PAGES = ("/api/docs", "/api/openapi.json")
#: what is handed on, beside the body's length
_HEADERS = ("content-type", "accept")
#: a proxy on this machine sends these for clients that are elsewhere
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
#: of the answer, what belongs to the connection it came over
_HOP = ("connection", "transfer-encoding", "keep-alive", "server", "date")
Later = Callable[[], Awaitable[http.Response]]


class Management:
    """Forwards to the launcher that listens at `socket`; None: there is none, and nothing to manage."""

    def __init__(self, config: Config, socket: Path | None) -> None:
        self._socket = socket
        self._enabled = config.management.enabled
        self._names = frozenset(config.management.keys)
        self._auth = config.auth.enabled
        self._keys = Keyring(key for key in config.auth.keys if key.name in self._names)
        self._origins = frozenset(config.server.cors_origins)

    def later(self, flow: http.HTTPFlow, path: str, client: Client | None) -> Later | None:
        """What makes the response, None when the path is not of this API. `client`: whose key the request bore (auth on)."""
        if not (path.startswith("/api/v1/") or path in _PAGES or path == "/api/v1"):
            return None
        try:
            if path.startswith(_RATED):
                self._check_rating(flow, client)
            else:
                self._check(flow, client)
        except ApiError as error:
            return _always(error)
        return lambda: self._forward(flow.request, client)

    def _check(self, flow: http.HTTPFlow, client: Client | None) -> None:
        if not self._enabled:
            raise NotFound("the management API is turned off (management.enabled)")
        self._check_there()
        request = flow.request
        _same_site(request)
        if self._auth:
            if client is not None and client.name in self._names:
                return
            if client is not None and request.method in ("GET", "HEAD"):
                return
            raise Forbidden("this API key may not manage; name it in management.keys", code="management_not_allowed")
        request.data.headers.fields, presented = take(request.data.headers.fields)
        if self._names:
            if not any(self._valid(key) for key in presented):
                raise Unauthorized("a key that management.keys names is needed: send it as Authorization: Bearer KEY")
        elif not (_local(flow) and _local_name(request.host_header)) or any(name in request.headers for name in _FORWARDED):
            raise Forbidden(
                "without keys the management API is for this machine only; name a key in management.keys",
                code="management_not_allowed",
            )

    def _valid(self, key: bytes) -> bool:
        client = self._keys.find(key)
        return client is not None and (client.expires is None or time.time() < client.expires)

    def _check_there(self) -> None:
        if self._socket is None:
            raise NotFound("there is no management API: it is the launcher's; start with `llmtap up`")

    def _check_rating(self, flow: http.HTTPFlow, client: Client | None) -> None:
        self._check_there()
        if self._auth and client is None:
            raise Unauthorized("no API key: send it as Authorization: Bearer KEY, or as x-api-key")
        request = flow.request
        if not self._origins & {"*", request.headers.get("origin", "")}:
            _same_site(request)
        if not self._auth:
            request.data.headers.fields, _ = take(request.data.headers.fields)

    async def _forward(self, request: http.Request, client: Client | None) -> http.Response:
        body = request.raw_content or b""
        head = [f"{request.method} {request.path} HTTP/1.1", "host: llmtap", "connection: close", f"content-length: {len(body)}"]
        head += [f"{name}: {request.headers[name]}" for name in _HEADERS if name in request.headers]
        if client is not None:
            head.append(f"{CLIENT_HEADER}: {client.name}")
        sent = "\r\n".join(head).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
            try:
                writer.write(sent)
                await writer.drain()
                return _response(await reader.read(), request.method)
            finally:
                writer.close()
        except (OSError, HTTPException, ValueError):
            return await _always(
                NoHealthyBackend("the launcher does not answer; the gateway goes on serving", code="management_unavailable")
            )()


def _response(raw: bytes, method: str) -> http.Response:
    """The bytes of a whole HTTP answer. Raises HTTPException, ValueError."""
    parsed = HTTPResponse(_Bytes(raw), method=method)  # type: ignore[arg-type]
    parsed.begin()
    headers = [(k.lower(), v) for k, v in parsed.getheaders() if k.lower() not in _HOP]
    body = parsed.read()
    kept = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers if k != "content-length"]
    response = http.Response.make(parsed.status, body, kept)
    if parsed.status == 204:
        response.headers.pop("content-length", None)
    return response


class _Bytes:
    """What `HTTPResponse` wants of a socket."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)


def _always(error: ApiError) -> Later:
    async def respond() -> http.Response:
        headers = {"content-type": "application/json"}
        if isinstance(error, Unauthorized):
            headers["www-authenticate"] = "Bearer"
        if error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
        return http.Response.make(error.status, error_body(error, "openai"), headers)

    return respond


def _same_site(request: http.Request) -> None:
    """A page of another site makes a browser on this machine send requests: they bear that page's origin."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != (request.host_header or "").lower():
        raise Forbidden("the management API is not for other sites' pages", code="management_not_allowed")
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Forbidden("the management API is not for other sites' pages", code="management_not_allowed")


def _local(flow: http.HTTPFlow) -> bool:
    peer = flow.client_conn.peername
    try:
        address = ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return not peer[0]  # a UNIX socket's peer has no address
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _local_name(host_header: str | None) -> bool:
    """Whether this machine is called by an address or `localhost`: a name could be anybody's that points here (DNS rebinding)."""
    name = urlsplit(f"//{host_header or ''}").hostname or ""
    if name == "localhost" or name.endswith(".localhost") or not name:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
