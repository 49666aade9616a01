"""What is read from a request body, and the one change made to it: asking vLLM for token usage on streams.

Usage is asked for when the client did not (`stream_options.include_usage`), and the extra chunk it brings is withheld
from the client again by the tee, so that the client sees what it would have seen without us.
"""

from __future__ import annotations

from mitmproxy import http

from llmtap.core.errors import BadRequest, WireError
from llmtap.core.headers import changed
from llmtap.exchange import Exchange
from llmtap.wire import request as wire_request
from llmtap.wire.form import FormScanner, boundary_of, request_of

_USAGE_ENDPOINTS = frozenset({"chat", "completions"})


class Transforms:
    """Policy: 400 for a body that is no request, `Exchange.parsed`, usage injected."""

    name = "transforms"

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if not ex.endpoint.json_body or ex.upload is not None or ex.method == "OPTIONS":  # a browser's preflight has no body
            if ex.endpoint.form and ex.upload is None:
                self._read_form(flow, ex)
            return
        content_type = ex.headers(flow.request).get(b"content-type")
        # Ollama reads JSON whatever it is called, and curl calls it a form
        if content_type and content_type != b"application/json" and ex.endpoint.family != "ollama":
            kind = content_type.decode("utf-8", "replace").partition(";")[0].strip().lower()
            if kind and kind != "application/json" and not kind.endswith("+json"):
                raise BadRequest(f"content-type must be application/json, not {kind[:80]!r}", param="content-type")
        try:
            ex.parsed = wire_request.parse(ex.endpoint.name, ex.body or b"")
        except WireError as error:
            raise BadRequest(str(error)) from None
        if ex.endpoint.name in _USAGE_ENDPOINTS and ex.parsed.stream and not ex.parsed.wants_usage:
            data = flow.request.data
            data.content = body = wire_request.inject_usage(ex.parsed, ex.body or b"")
            data.headers.fields = changed(data.headers.fields, {b"content-length": b"%d" % len(body)})
            ex.usage_injected = True

    def _read_form(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        boundary = boundary_of(flow.request.headers.get("content-type", ""))
        if boundary is not None:
            scanner = FormScanner(boundary)
            try:
                scanner.feed(ex.body or b"")
            except WireError as error:
                raise BadRequest(str(error)) from None
            ex.parsed = request_of(ex.endpoint.name, scanner.fields)
