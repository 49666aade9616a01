"""The gateway's own answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from mitmproxy import http

from llmtap.endpoints import Endpoints
from llmtap.policy.backends import Backend, Backends


@pytest.fixture
def backends() -> Backends:
    up = Backend("a", "127.0.0.1", 1, models=("m",), model_cards=({"id": "m", "object": "model"},), state="up")
    return Backends([up, Backend("b", "127.0.0.1", 2, state="down", reason="refused", api_key="hidden")])


class Told:
    """What the metrics tell, without metrics."""

    async def text(self, accept: str) -> tuple[str, bytes]:
        return "text/plain", b"asked for " + accept.encode()

    async def plain(self) -> dict[str, Any]:
        labels = {"model": "m", "backend": "a", "outcome": "ok"}
        sample = {"name": "llmtap_requests_total", "labels": labels, "value": 3}
        waiting = {"name": "llmtap_requests_waiting", "labels": {}, "value": 2}
        return {"llmtap_requests": {"samples": [sample]}, "llmtap_requests_waiting": {"samples": [waiting]}}

    async def backends(self) -> tuple[str, bytes]:
        return "text/plain", b"theirs"

    def tell(self, facts: Callable[[], dict[str, Any]]) -> None:
        self.facts = facts

    async def told(self) -> list[dict[str, Any]]:
        return [self.facts(), *others]


STATS = {"in_flight": 0, "waiting": 0, "spool_bytes": 10, "capture_healthy": True}
#: what the other workers said
others: list[dict[str, Any]] = []


@pytest.fixture
def own(backends: Backends) -> Endpoints:
    return Endpoints(backends, lambda: STATS, Told())


async def slowly(own: Endpoints, path: str, method: str = "GET", **headers: str) -> http.Response:
    make = own.later(http.Request.make(method, f"http://g{path}", b"", headers), path)
    assert make is not None
    return await make()


def get(own: Endpoints, path: str, method: str = "GET", **headers: str) -> http.Response | None:
    return own.answer(http.Request.make(method, f"http://g{path}", b"", headers), path)


def body(response: http.Response | None) -> object:
    assert response is not None
    return orjson.loads(response.content or b"")


def test_health(own: Endpoints, backends: Backends) -> None:
    for path in ("/health", "/internal/healthz"):
        assert body(get(own, path)) == {"status": "ok"}
    ready = get(own, "/health/ready")
    assert ready is not None and ready.status_code == 200
    backends.set_state("a", "down", "", 0.0)
    ready = get(own, "/health/ready")
    assert ready is not None and ready.status_code == 503
    assert body(ready) == {"status": "no healthy backend", "backends": {"a": "down", "b": "down"}}


def test_models(own: Endpoints) -> None:
    assert body(get(own, "/v1/models")) == {"object": "list", "data": [{"id": "m", "object": "model"}]}


async def test_metrics(own: Endpoints) -> None:
    answer = await slowly(own, "/metrics", Accept="this")
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "text/plain", b"asked for this")
    assert (await slowly(own, "/metrics/backends")).content == b"theirs"


def test_one_model_and_one_that_is_none(own: Endpoints, backends: Backends) -> None:
    assert body(get(own, "/v1/models/m")) == {"id": "m", "object": "model"}
    unknown = get(own, "/v1/models/org/other")
    assert unknown is not None and unknown.status_code == 404
    assert body(unknown)["error"]["code"] == "model_not_found"  # type: ignore[index]


def test_tags_are_a_union_where_there_is_an_ollama(own: Endpoints, backends: Backends) -> None:
    assert get(own, "/api/tags") is None
    tag = {"name": "llama3:latest", "model": "llama3:latest"}
    backends.add(Backend("o", "h", 3, models=("llama3:latest",), tags=(tag,), state="up", kind="ollama"))
    assert body(get(own, "/api/tags")) == {"models": [tag]}


async def test_snapshot_and_stats(own: Endpoints) -> None:
    assert "llmtap_requests" in dict(body(await slowly(own, "/internal/metrics")))  # type: ignore[call-overload]
    stats = body(await slowly(own, "/stats", "HEAD"))
    assert isinstance(stats, dict) and [b["state"] for b in stats["backends"]] == ["up", "down"]
    assert stats["waiting"] == 2 and stats["running"] is None and stats["in_flight"] == 0
    assert [(row["model"], row["requests"]) for row in stats["models"]] == [("m", 3)]
    assert "hidden" not in str(stats)


async def test_stats_of_several_workers(own: Endpoints, backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    backends["a"].max_concurrency = 4
    load = {"a": {"in_flight": 2, "max_concurrency": 4}, "gone": {"in_flight": 1, "max_concurrency": 1}}
    other = {"pid": 7, "in_flight": 3, "waiting": 1, "spool_bytes": 12, "capture_healthy": False, "backends": load}
    monkeypatch.setattr(sys.modules[__name__], "others", [other])
    stats = body(await slowly(own, "/stats"))
    assert isinstance(stats, dict)
    assert (stats["in_flight"], stats["spool_bytes"], stats["capture_healthy"]) == (3, 12, False)
    assert stats["workers"] == [
        {"pid": os.getpid(), "in_flight": 0, "waiting": 0},
        {"pid": 7, "in_flight": 3, "waiting": 1},
    ]
    assert [(b["in_flight"], b["max_concurrency"]) for b in stats["backends"]] == [(2, 8), (0, None)]


def test_others_are_not_ours(own: Endpoints) -> None:
    assert get(own, "/v1/chat/completions") is None
    assert get(own, "/health", "POST") is None
    assert own.later(http.Request.make("POST", "http://g/metrics"), "/metrics") is None
    assert get(own, "/health", "HEAD") is not None


def test_metrics_can_be_off(backends: Backends) -> None:
    own = Endpoints(backends, dict, None)
    for path in ("/metrics", "/metrics/backends", "/internal/metrics", "/stats"):
        request = http.Request.make("GET", f"http://g{path}")
        assert own.later(request, path) is None and own.answer(request, path) is None
    assert get(own, "/health") is not None
