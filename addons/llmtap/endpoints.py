"""The gateway's own answers: health, metrics, the list of models. They are no exchanges: neither captured nor counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from mitmproxy import http
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from llmtap import __version__
from llmtap.core.snapshot import snapshot
from llmtap.policy.backends import Backends

Reply = tuple[int, str, bytes]
JSON = "application/json"


class Endpoints:
    """Answers GET and HEAD of its paths; `answer` gives None for every other request."""

    def __init__(
        self, backends: Backends, registry: CollectorRegistry, stats: Callable[[], dict[str, Any]], metrics: bool
    ) -> None:
        self._backends = backends
        self._registry = registry
        self._stats = stats
        self._paths: dict[str, Callable[[http.Request], Reply]] = {
            "/health": self._health,
            "/internal/healthz": self._health,
            "/health/ready": self._ready,
            "/v1/models": self._models,
        }
        if metrics:
            self._paths |= {"/metrics": self._metrics, "/internal/metrics": self._snapshot, "/stats": self._status}

    def knows(self, request: http.Request, path: str) -> bool:
        """Whether this request is for us."""
        return path in self._paths and request.method in ("GET", "HEAD")

    def answer(self, request: http.Request, path: str, models: frozenset[str] | None = None) -> http.Response | None:
        """Our own response for this request, or None when the path is not ours. `models`: those the client may see."""
        if not self.knows(request, path):
            return None
        if models is not None and path == "/v1/models":
            status, content_type, body = _models_answer([m for m in self._backends.models() if m["id"] in models])
        else:
            status, content_type, body = self._paths[path](request)
        return http.Response.make(status, body, {"content-type": content_type})

    def _health(self, request: http.Request) -> Reply:
        return 200, JSON, b'{"status":"ok"}'

    def _ready(self, request: http.Request) -> Reply:
        states = {b.name: b.state for b in self._backends}
        ready = self._backends.healthy()
        return (
            (200 if ready else 503),
            JSON,
            orjson.dumps({"status": "ok" if ready else "no healthy backend", "backends": states}),
        )

    def _models(self, request: http.Request) -> Reply:
        return _models_answer(self._backends.models())

    def _metrics(self, request: http.Request) -> Reply:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return 200, content_type, encode(self._registry)

    def _snapshot(self, request: http.Request) -> Reply:
        return 200, JSON, orjson.dumps(snapshot(self._registry))

    def _status(self, request: http.Request) -> Reply:
        backends = [
            {
                "name": b.name,
                "url": b.url,
                "state": b.state,
                "reason": b.reason,
                "in_flight": b.in_flight,
                "models": list(b.fixed_models or b.models or ()),
            }
            for b in self._backends
        ]
        return 200, JSON, orjson.dumps({"version": __version__, "backends": backends, **self._stats()})


def _models_answer(cards: list[dict[str, object]]) -> Reply:
    return 200, JSON, orjson.dumps({"object": "list", "data": cards})
