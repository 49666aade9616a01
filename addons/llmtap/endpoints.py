"""The gateway's own answers: health, metrics, the list of models. They are no exchanges: neither captured nor counted."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from mitmproxy import http

from llmtap import __version__
from llmtap.core import rollup
from llmtap.core.errors import NotFound, error_body
from llmtap.policy.backends import Backends

Reply = tuple[int, str, bytes]
JSON = "application/json"
_MODEL = "/v1/models/"


class Exposition(Protocol):
    """What the metrics tell: content type and body, or plain data."""

    async def text(self, accept: str) -> tuple[str, bytes]: ...
    async def plain(self) -> dict[str, Any]: ...
    async def backends(self) -> tuple[str, bytes]: ...
    def tell(self, facts: Callable[[], dict[str, Any]]) -> None: ...
    async def told(self) -> list[dict[str, Any]]: ...


class Endpoints:
    """Answers GET and HEAD of its paths: `answer` at once, `later` what takes its time. Both give None for every other
    request. Without an `exposition` the paths of the metrics are not there."""

    def __init__(self, backends: Backends, stats: Callable[[], dict[str, Any]], exposition: Exposition | None) -> None:
        self._backends = backends
        self._stats = stats
        self._paths: dict[str, Callable[[http.Request], Reply]] = {
            "/health": self._health,
            "/internal/healthz": self._health,
            "/health/ready": self._ready,
        }
        self._slow: dict[str, Callable[[http.Request, Exposition], Awaitable[Reply]]] = {
            "/metrics": self._metrics,
            "/metrics/backends": self._backend_metrics,
            "/internal/metrics": self._snapshot,
            "/stats": self._status,
        }
        self._exposition = exposition
        if exposition is not None:
            exposition.tell(self._facts)

    def knows(self, request: http.Request, path: str) -> bool:
        """Whether this request is for us."""
        known = self._quick(path) or (self._exposition is not None and path in self._slow)
        return known and request.method in ("GET", "HEAD")

    def answer(self, request: http.Request, path: str, models: frozenset[str] | None = None) -> http.Response | None:
        """Our own response for this request, or None when the path is not ours. `models`: those the client may see."""
        if not self._quick(path) or request.method not in ("GET", "HEAD"):
            return None
        if path == "/v1/models":
            status, content_type, body = _models_answer(self._models(models))
        elif path.startswith(_MODEL):
            status, content_type, body = _model_answer(self._models(models), path.removeprefix(_MODEL))
        elif path == "/api/tags":
            status, content_type, body = _tags_answer([t for t in self._backends.tags() if models is None or t["name"] in models])
        else:
            status, content_type, body = self._paths[path](request)
        return http.Response.make(status, body, {"content-type": content_type})

    def later(self, request: http.Request, path: str) -> Callable[[], Awaitable[http.Response]] | None:
        """The same for what is made in a thread or asked of others: a function that makes the response."""
        exposition = self._exposition
        handler = self._slow.get(path) if exposition is not None else None
        if handler is None or exposition is None or request.method not in ("GET", "HEAD"):
            return None

        async def respond() -> http.Response:
            status, content_type, body = await handler(request, exposition)
            return http.Response.make(status, body, {"content-type": content_type})

        return respond

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

    def _facts(self) -> dict[str, Any]:
        """What is in no metric, of this process alone."""
        loads = {b.name: {"in_flight": b.in_flight, "max_concurrency": b.max_concurrency} for b in self._backends}
        return {"pid": os.getpid(), **self._stats(), "backends": loads}

    def _quick(self, path: str) -> bool:
        """Whether `answer` has one for this path."""
        if path in self._paths or path == "/v1/models" or path.startswith(_MODEL):
            return True
        return path == "/api/tags" and self._backends.has_ollama

    def _models(self, visible: frozenset[str] | None) -> list[dict[str, object]]:
        cards = self._backends.models()
        return cards if visible is None else [card for card in cards if card["id"] in visible]

    async def _metrics(self, request: http.Request, exposition: Exposition) -> Reply:
        return 200, *await exposition.text(request.headers.get("accept", ""))

    async def _backend_metrics(self, request: http.Request, exposition: Exposition) -> Reply:
        return 200, *await exposition.backends()

    async def _snapshot(self, request: http.Request, exposition: Exposition) -> Reply:
        return 200, JSON, orjson.dumps(await exposition.plain())

    async def _status(self, request: http.Request, exposition: Exposition) -> Reply:
        snapshot = await exposition.plain()
        told = await exposition.told()
        backends = [{**b.facts(), **_together([one["backends"].get(b.name, {}) for one in told])} for b in self._backends]
        summary = {
            "version": __version__,
            "backends": backends,
            **_all_of(told),
            "running": rollup.total(snapshot, "llmtap_requests_running"),
            "waiting": rollup.total(snapshot, "llmtap_requests_waiting"),
            "spool_lag_s": rollup.total(snapshot, "llmtap_spool_lag_seconds"),
            "models": rollup.plain(rollup.rows(snapshot)),
        }
        return 200, JSON, orjson.dumps(summary)


def _all_of(told: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes said, as one; and a row of each."""
    healthy = [one["capture_healthy"] for one in told]
    return {
        "in_flight": sum(one["in_flight"] for one in told),
        "waiting": sum(one["waiting"] for one in told),
        "spool_bytes": max(one["spool_bytes"] for one in told),  # each looks at the whole folder
        "capture_healthy": None if None in healthy else all(healthy),
        "workers": [{name: one[name] for name in ("pid", "in_flight", "waiting")} for one in told],
    }


def _together(loads: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes have in flight at one backend, and what they may have."""
    most = [load.get("max_concurrency") for load in loads]
    return {
        "in_flight": sum(load.get("in_flight", 0) for load in loads),
        "max_concurrency": None if None in most else sum(most),
    }


def _model_answer(cards: list[dict[str, object]], name: str) -> Reply:
    for card in cards:
        if card["id"] == name:
            return 200, JSON, orjson.dumps(card)
    unknown = NotFound(f"The model `{name}` does not exist.", code="model_not_found", param="model")
    return unknown.status, JSON, error_body(unknown, "openai")


def _tags_answer(tags: list[dict[str, object]]) -> Reply:
    return 200, JSON, orjson.dumps({"models": tags})


def _models_answer(cards: list[dict[str, object]]) -> Reply:
    return 200, JSON, orjson.dumps({"object": "list", "data": cards})
