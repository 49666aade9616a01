"""Which path, which size, which backend: the gate of every request, and the plan of where it goes.

At the head: the path must be an inference route (or allowed by the configuration) in its one canonical spelling, the
method must fit, a declared body must not be too large. With the body: the model decides among the healthy backends.
"""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy import http

from llmtap.core.config import Config
from llmtap.core.endpoints import OTHER
from llmtap.core.errors import BadRequest, NotFound, TooLarge
from llmtap.core.headers import changed
from llmtap.core.plan import FailureReason, Plan, Target
from llmtap.exchange import Exchange
from llmtap.policy.backends import Backend, Backends

#: request headers that are ours: obeyed or recorded, never forwarded
_OURS: dict[bytes, bytes | None] = dict.fromkeys(
    (b"x-llmtap-tags", b"x-llmtap-metadata", b"x-llmtap-cache", b"x-llmtap-capture", b"x-session-id")
)
Failed = Callable[[str, FailureReason], None]
Streams = Callable[[http.Request, Exchange], bool]


class Routing:
    """Policy: 404/405/413 before anything else is done, then `Exchange.plan`."""

    name = "routing"

    def __init__(self, config: Config, backends: Backends, failed: Failed, streams: Streams = lambda request, ex: False) -> None:
        """`streams`: whether a request body is sent on as it comes."""
        self._streams = streams
        self._backends = backends
        self._allowed = frozenset(config.routing.allow_paths)
        self._max_body = config.server.max_body_mb * 1024 * 1024
        self._failed = failed
        self._timeouts = config.timeouts
        self._retries = config.routing.retries
        self._targets = {b.name: _target(b) for b in backends}

    def on_requestheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.endpoint is OTHER and ex.path not in self._allowed:
            raise NotFound(f"{ex.method} {ex.path} is not an inference path; allow it with routing.allow_paths")
        if ex.method not in ex.endpoint.methods and ex.method != "OPTIONS":
            raise BadRequest(
                f"{ex.method} is not allowed on {ex.path}; use {' or '.join(ex.endpoint.methods)}", code="method_not_allowed"
            )
        if not ex.endpoint.json_body and ex.lane and self._streams(flow.request, ex):
            flow.request.stream = True  # it is never here as a whole: its size does not matter
            return
        declared = ex.headers(flow.request).get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._max_body:
            raise self.too_large()

    def too_large(self) -> TooLarge:
        return TooLarge(f"the request body is larger than server.max_body_mb ({self._max_body // 1048576} MiB)")

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.body is not None and len(ex.body) > self._max_body:
            raise self.too_large()
        model = ex.model
        if model is None and ex.endpoint.name == "realtime":
            model = flow.request.query.get("model")  # as OpenAI's clients say it
        chosen = self._backends.choose(model)
        t = self._timeouts
        ex.plan = Plan(
            candidates=[self._targets[b.name] for b in chosen],
            retries=self._retries,
            connect_s=t.connect_s,
            first_byte_s=t.first_byte_s,
            idle_s=t.idle_s,
            total_s=t.total_s,
            on_failure=self._target_failed,
        )
        self._take(ex, chosen[0].name)
        self._prepare(flow, ex, ex.plan.candidates[0])

    def on_responseheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        served = ex.plan.served_by if ex.plan else None
        if served is not None and served.backend != ex.backend:
            self._release(ex)
            self._take(ex, served.backend)

    def withdraw(self, ex: Exchange) -> None:
        """It needs no backend any more."""
        self._release(ex)
        ex.plan = ex.backend = None

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self._release(ex)

    def _target_failed(self, target: Target, reason: FailureReason) -> None:
        self._failed(target.backend, reason)

    def _take(self, ex: Exchange, backend: str) -> None:
        ex.backend = backend
        self._backends[backend].in_flight += 1

    def _release(self, ex: Exchange) -> None:
        if ex.backend is not None and ex.plan is not None:
            self._backends[ex.backend].in_flight -= 1

    def _prepare(self, flow: http.HTTPFlow, ex: Exchange, target: Target) -> None:
        data = flow.request.data
        headers = ex.headers(flow.request)
        # what comes back must be readable by the decoders
        changes = _OURS | {b"accept-encoding": b"identity", b"x-request-id": ex.client_request_id.encode("ascii")}
        if target.headers:
            # the backend has a key of its own: the client's is none of its business
            changes[b"authorization"] = changes[b"x-api-key"] = None
        elif b"authorization" not in headers and (key := headers.get(b"x-api-key")):
            changes[b"authorization"] = b"Bearer " + key  # vLLM reads no other form
        if not ex.lane:
            # the lane puts address, Host and the backend's key on the wire, for whichever backend it tries
            changes |= target.headers
            changes[b"host"] = target.host_header
            data.host, data.port, data.scheme = target.host, target.port, b"https" if target.tls else b"http"
        data.headers.fields = changed(data.headers.fields, changes)


def _target(backend: Backend) -> Target:
    if backend.uds is not None:
        host, header = "localhost", b"localhost"  # what the backend sees; nobody is asked for an address
    else:
        host = backend.host
        header = f"{f'[{host}]' if ':' in host else host}:{backend.port}".encode()
    headers = ((b"authorization", f"Bearer {backend.api_key}".encode()),) if backend.api_key else ()
    return Target(
        backend=backend.name,
        host=host,
        port=backend.port,
        tls=backend.tls,
        uds=backend.uds,
        host_header=header,
        drain=backend.drain,
        headers=headers,
    )
