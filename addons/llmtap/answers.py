"""Answers of our own: errors in the client's dialect, the last words of a broken stream, the headers every reply carries."""

from __future__ import annotations

from mitmproxy import http

from llmtap.core.errors import ApiError, TooLarge, Unauthorized, UpstreamFailed, dialect_of, error_body, stream_error
from llmtap.exchange import Exchange

#: headers of ours that a browser may show a page
_EXPOSED = (
    "x-request-id, x-llmtap-backend, x-llmtap-cache, x-llmtap-queue-ms, x-llmtap-attempts, retry-after, x-ratelimit-limit, "
    "x-ratelimit-remaining, x-ratelimit-reset, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


def error_response(error: ApiError, ex: Exchange | None, request: http.Request | None) -> http.Response:
    """The whole error answer. Without an exchange the request's path tells the dialect, without a request it is OpenAI's."""
    if ex is not None:
        dialect = ex.dialect
    else:
        dialect = dialect_of(request.path) if request is not None else "openai"
    response = http.Response.make(error.status, error_body(error, dialect), {"content-type": "application/json"})
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        response.headers["www-authenticate"] = "Bearer"
    if isinstance(error, TooLarge):
        response.headers["connection"] = "close"
    if ex is not None:
        own_headers(response.headers, ex)
    return response


def last_words(ex: Exchange) -> bytes:
    """The end of a stream whose backend died: what was held back of it, then one error event (unless it had ended already)."""
    if ex.status is None or ex.status >= 400:
        return b""
    held = ex.tee.held() if ex.tee is not None else b""
    kind = ex.content_type.partition(";")[0].strip().lower()
    if kind not in ("text/event-stream", "application/x-ndjson") or (ex.summary is not None and ex.summary.complete):
        return held
    dialect = "ollama" if kind == "application/x-ndjson" else ex.dialect
    return held + stream_error(UpstreamFailed("the backend ended the stream before it was complete"), dialect)


def own_headers(headers: http.Headers, ex: Exchange) -> None:
    """Set the x-request-id and x-llmtap-* headers of a reply; a backend's own of these names go."""
    own = [
        (b"x-request-id", ex.client_request_id.encode("ascii")),
        (b"x-llmtap-cache", ex.cache.encode()),
        (b"x-llmtap-queue-ms", b"%.1f" % (ex.queue_s * 1000)) if ex.queue_s else _AT_ONCE,
        (b"x-llmtap-attempts", b"%d" % ex.attempts),
    ]
    if ex.backend is not None:
        own.append((b"x-llmtap-backend", ex.backend.encode()))
    if ex.limit_headers:
        own += ex.limit_headers
    kept = [field for field in headers.fields if field[0].lower() not in _OWN]
    headers.fields = (*kept, *own)
    if ex.cors_origin is not None:
        readable_by(headers, ex.cors_origin)


_AT_ONCE = (b"x-llmtap-queue-ms", b"0.0")
_OWN = frozenset(
    (
        *(b"x-request-id", b"x-llmtap-backend", b"x-llmtap-cache", b"x-llmtap-queue-ms", b"x-llmtap-attempts"),
        *(b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"),
        *(b"x-ratelimit-%s-%s" % (a, b) for a in (b"limit", b"remaining", b"reset") for b in (b"requests", b"tokens")),
    )
)


def readable_by(headers: http.Headers, origin: str) -> None:
    """Let the web page at `origin` (* for any) read an answer with these headers."""
    headers["access-control-allow-origin"] = origin
    headers["access-control-expose-headers"] = _EXPOSED
    if origin != "*":
        headers["vary"] = f"{headers['vary']}, origin" if "vary" in headers else "origin"


_CLIENT_GONE = "Client disconnected."  # mitmproxy.proxy.layers.http._http1
#: mitmproxy.proxy.layers.http._http2, of either side: an end of the connection, a stream reset, GOAWAY
_HTTP2_GONE = ("peer closed connection", "stream reset by client (", "HTTP/2 connection closed: ")


def client_left(flow: http.HTTPFlow, message: str) -> bool:
    """Whether mitmproxy's reason for the end of a flow is that its client has gone."""
    if message == _CLIENT_GONE:
        return True
    # the same words for a backend's HTTP/2, which no inference server speaks
    return flow.client_conn.alpn == b"h2" and flow.server_conn.alpn != b"h2" and message.startswith(_HTTP2_GONE)


def plain_failure(message: str) -> str:
    """mitmproxy's reason without what a backend may have put into it (`unexpected server response: b'...'`)."""
    known = {"server closed connection": "the backend closed the connection before it answered"}
    if message in known:
        return known[message]
    if "refused" in message.lower():
        return "the backend refused the connection"
    return "the backend failed: " + message.partition(":")[0][:80]
