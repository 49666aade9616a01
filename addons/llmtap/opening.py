"""The first look at a request: an `Exchange` from its head, and what its llmtap headers say."""

from __future__ import annotations

import json
from typing import Literal

from mitmproxy import http

from llmtap.core.endpoints import OTHER, direct, endpoint_of
from llmtap.core.errors import BadRequest, dialect_of
from llmtap.core.headers import text
from llmtap.exchange import Exchange

_CAPTURE: dict[bytes, Literal["full", "metadata", "off"]] = {b"off": "off", b"metadata": "metadata", b"full": "full"}


def open_exchange(flow: http.HTTPFlow, path: str | None) -> Exchange:
    """The exchange of a request whose canonical path is `path` (None: it has none, and will be refused)."""
    request = flow.request
    shown = path if path is not None else request.path.partition("?")[0][:200]
    straight = direct(path) if path is not None else None
    there = shown if straight is None else straight[1]
    endpoint = endpoint_of(there) if path is not None else None
    peer = flow.client_conn.peername
    ex = Exchange(request.method, shown, endpoint or OTHER, dialect_of(there), peer[0] if peer else "")
    ex.direct = straight
    headers = ex.headers(request)
    ex.user_agent = text(headers.get(b"user-agent"))
    ex.session_hint = text(headers.get(b"x-session-id"))
    given = headers.get(b"x-request-id")
    if given and len(given) <= 128 and all(0x21 <= c <= 0x7E for c in given):
        ex.request_id = given.decode("ascii")
    return ex


def read_own_headers(request: http.Request, ex: Exchange) -> None:
    """`x-llmtap-tags`, `x-llmtap-metadata`, `x-llmtap-cache` and `x-llmtap-capture`. Raises BadRequest."""
    headers = ex.headers(request)
    wish = headers.get(b"x-llmtap-cache")
    if wish:
        ex.cache_wish = wish.strip().lower()
    tags = text(headers.get(b"x-llmtap-tags"))
    if tags:
        ex.tags = [t for t in (tag.strip() for tag in tags.split(",")) if t]
    metadata = headers.get(b"x-llmtap-metadata")
    if metadata:
        try:
            parsed = json.loads(metadata)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise BadRequest("x-llmtap-metadata must be a JSON object", param="x-llmtap-metadata")
        ex.metadata = parsed
    record = headers.get(b"x-llmtap-capture")
    if record is not None:
        ex.capture_wish = _CAPTURE.get(record.strip().lower())
        if ex.capture_wish is None:
            raise BadRequest("x-llmtap-capture must be off, metadata or full", param="x-llmtap-capture")
