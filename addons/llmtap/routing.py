"""Which path, which size, which backends: the gate of every request.

At the head: the path must be an inference route (or allowed by the configuration) in its one canonical spelling, the method must
fit, a declared body must not be too large. With the body: somebody has to serve its model. Who gets it of those is decided when
it is sent (`queueing`).

    /v1/chat/completions     any backend that serves the model
    /api/chat                of these the Ollama ones, if there are any; /tokenize and what else only vLLM has: the others
    /proxy/8081/v1/...       the backend that listens there, or that port of this machine if routing.direct_ports names it
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from mitmproxy import http

from llmtap.core.config import Config
from llmtap.core.endpoints import OTHER, TELLING, Endpoint, is_control
from llmtap.core.errors import BadRequest, NotFound, TooLarge
from llmtap.exchange import Exchange
from llmtap.policy.affinity import Homes, prefix_key, session_key
from llmtap.policy.backends import Backend, Backends, Scope
from llmtap.policy.route import Route
from llmtap.wire.form import boundary_of
from llmtap.wire.form_rename import FormRename

_IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE")
Streams = Callable[[http.Request, Exchange], bool]


class Routing:
    """Policy: 404/405/413 before anything else is done, then `Exchange.route`."""

    name = "routing"

    def __init__(
        self,
        config: Config,
        backends: Backends,
        streams: Streams = lambda request, ex: False,
        before: Routing | None = None,
    ) -> None:
        """`streams`: whether a request body is sent on as it comes. `before`: of the configuration before this one."""
        self._streams = streams
        self._backends = backends
        self._allowed = frozenset(config.routing.allow_paths)
        self._max_body = config.server.max_body_mb * 1024 * 1024
        self._ports = frozenset(config.routing.direct_ports)
        self._beyond = {port: Backend(f"port-{port}", "127.0.0.1", port, max_concurrency=1 << 30) for port in self._ports}
        self._homes: Homes = before._homes if before is not None else Homes()

    # ---- the head

    def on_requestheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.direct is not None:
            self._check_direct(ex, *ex.direct)
        elif ex.endpoint is OTHER and ex.path not in self._allowed:
            raise NotFound(f"{ex.method} {ex.path} is not an inference path; allow it with routing.allow_paths")
        if ex.method not in ex.endpoint.methods and ex.method != "OPTIONS":
            raise BadRequest(
                f"{ex.method} is not allowed on {ex.path}; use {' or '.join(ex.endpoint.methods)}", code="method_not_allowed"
            )
        if not ex.endpoint.json_body and ex.lane and self._streams(flow.request, ex):
            # it is never here as a whole: its size does not matter
            flow.request.stream = self._renaming(flow, ex) or True
            return
        declared = ex.headers(flow.request).get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._max_body:
            raise self.too_large()

    def _check_direct(self, ex: Exchange, port: int, path: str) -> None:
        """Only ports that are open, and what may be asked there: of a backend what it may be asked anyway, of ports that the
        configuration opens everything but control routes."""
        if port not in self._ports and (self._ports or not any(b.port == port for b in self._backends)):
            raise NotFound(f"port {port} is not open to /proxy; routing.direct_ports names those that are")
        if path in self._allowed or ex.endpoint is not OTHER:
            return
        told = path in TELLING and ex.method in ("GET", "HEAD")
        if not told and (port not in self._ports or is_control(path)):
            raise NotFound(f"{ex.method} {path} is not an inference path; allow it with routing.allow_paths")

    def _renaming(self, flow: http.HTTPFlow, ex: Exchange) -> FormRename | None:
        """What changes the model's name in a form, where it may have to be."""
        if not ex.endpoint.form or ex.direct is not None or not (self._backends.aliases or self._backends.fallbacks):
            return None
        boundary = boundary_of(flow.request.headers.get("content-type", ""))
        return FormRename(boundary) if boundary is not None else None

    def too_large(self) -> TooLarge:
        return TooLarge(f"the request body is larger than server.max_body_mb ({self._max_body // 1048576} MiB)")

    # ---- with the body

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.body is not None and len(ex.body) > self._max_body:
            raise self.too_large()
        endpoint = ex.endpoint
        session = ex.session_hint
        idempotent = endpoint is not OTHER or ex.method in _IDEMPOTENT
        if ex.direct is not None:
            route = self._straight(flow, *ex.direct)
            route.idempotent = idempotent
        else:
            model = ex.model
            if model is None and endpoint.name == "realtime":
                model = flow.request.query.get("model")  # as OpenAI's clients say it
            route = Route(self._scope(endpoint), model, idempotent=idempotent)
            if ex.parsed is not None:
                if self._backends.by_prefix:
                    route.key = prefix_key(endpoint.name, ex.parsed.obj)
                if endpoint.name == "responses":
                    earlier = ex.parsed.obj.get("previous_response_id")
                    route.home = self._homes.of(earlier) if type(earlier) is str else None
            elif endpoint.name == "responses_by_id":
                route.home = self._homes.of(ex.path.split("/")[3])
        if session:
            route.session = session_key(session)
        if route.only is None:
            self._backends.ways(route.scope, route.model)  # 404 or 503 before anybody waits
        ex.route = route

    def _scope(self, endpoint: Endpoint) -> Scope:
        """Which backends have this endpoint. Where none is said to be an Ollama, any may be one (`--mode reverse:URL`)."""
        if endpoint is OTHER or (endpoint.kind == "ollama" and not self._backends.has_ollama):
            return "any"
        return endpoint.kind

    def _straight(self, flow: http.HTTPFlow, port: int, path: str) -> Route:
        """The way to a port: the path without its prefix, in its canonical spelling, and the query as it came."""
        query = flow.request.path.partition("?")
        flow.request.path = quote(path, safe="/:@!$&'()*+,=~-._") + query[1] + query[2]
        if any(b.port == port for b in self._backends):
            return Route(port, None)
        return Route(port, None, only=self._beyond[port])

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.endpoint.name == "responses" and ex.backend is not None and ex.summary is not None:
            response_id = ex.summary.response_id
            if response_id is not None:
                self._homes.note(response_id, ex.backend)
