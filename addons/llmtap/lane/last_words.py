"""How a stream ends whose backend died after the first byte: one error event in the client's dialect, if it can carry one."""

from __future__ import annotations

from mitmproxy import http

from llmtap.core.errors import ApiError, Dialect, dialect_of, stream_error

#: what the protocols themselves end with, in the last bytes of a stream
_ENDS: dict[Dialect, tuple[bytes, ...]] = {
    "openai": (b"data: [DONE]", b"event: response.completed", b"event: response.failed", b"event: response.incomplete"),
    "anthropic": (b"event: message_stop",),
    "ollama": (b'"done":true', b'"done": true'),
}


def last_words(flow: http.HTTPFlow, error: ApiError, tail: bytes) -> bytes:
    """The bytes to add to a broken response whose last ones were `tail`; empty when it is no stream of events, or whole."""
    response = flow.response
    if response is None or response.data.status_code >= 400 or response.headers.get("content-encoding", "identity") != "identity":
        return b""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        dialect = dialect_of(flow.request.path)
        # an unfinished event must not swallow ours
        gap = b"" if not tail or tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
    elif kind in ("application/x-ndjson", "application/jsonl"):
        dialect = "ollama"
        gap = b"" if not tail or tail.endswith(b"\n") else b"\n"
    else:
        return b""
    if any(end in tail for end in _ENDS[dialect]):
        return b""
    return gap + stream_error(error, dialect)
