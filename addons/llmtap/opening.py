"""The first look at a request: an `Exchange` from its head, and what its llmtap headers say."""

from __future__ import annotations

import json

from mitmproxy import http

from llmtap.core.endpoints import OTHER, endpoint_of
from llmtap.core.errors import BadRequest, dialect_of
from llmtap.exchange import Exchange


def open_exchange(flow: http.HTTPFlow, path: str | None) -> Exchange:
    """The exchange of a request whose canonical path is `path` (None: it has none, and will be refused)."""
    request = flow.request
    shown = path if path is not None else request.path.partition("?")[0][:200]
    endpoint = endpoint_of(path) if path is not None else None
    peer = flow.client_conn.peername
    ex = Exchange(
        method=request.method,
        path=shown,
        endpoint=endpoint or OTHER,
        dialect=dialect_of(shown),
        client_ip=peer[0] if peer else "",
        user_agent=request.headers.get("user-agent"),
        session_hint=request.headers.get("x-session-id"),
    )
    given = request.headers.get("x-request-id", "")
    if given and len(given) <= 128 and all(0x21 <= ord(c) <= 0x7E for c in given):
        ex.request_id = given
    return ex


def read_own_headers(request: http.Request, ex: Exchange) -> None:
    """`x-llmtap-tags` and `x-llmtap-metadata`. Raises BadRequest."""
    tags = request.headers.get("x-llmtap-tags")
    if tags:
        ex.tags = [t for t in (tag.strip() for tag in tags.split(",")) if t]
    metadata = request.headers.get("x-llmtap-metadata")
    if metadata:
        try:
            parsed = json.loads(metadata)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise BadRequest("x-llmtap-metadata must be a JSON object", param="x-llmtap-metadata")
        ex.metadata = parsed
