"""The gateway's own answers."""

from __future__ import annotations

import orjson
import pytest
from mitmproxy import http
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from llmtap.endpoints import Endpoints
from llmtap.policy.backends import Backend, Backends


@pytest.fixture
def backends() -> Backends:
    up = Backend("a", "127.0.0.1", 1, models=("m",), model_cards=({"id": "m", "object": "model"},), state="up")
    return Backends([up, Backend("b", "127.0.0.1", 2, state="down", reason="refused", api_key="hidden")])


@pytest.fixture
def own(backends: Backends) -> Endpoints:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc()
    return Endpoints(backends, registry, lambda: {"in_flight": 0}, metrics=True)


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


def test_metrics_in_both_formats(own: Endpoints) -> None:
    plain = get(own, "/metrics")
    assert plain is not None and plain.headers["content-type"].startswith("text/plain")
    assert next(iter(text_string_to_metric_families(plain.text or ""))).name == "things"
    modern = get(own, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert modern is not None and modern.headers["content-type"].startswith("application/openmetrics-text")
    assert [f.name for f in openmetrics(modern.text or "")] == ["things"]


def test_snapshot_and_stats(own: Endpoints) -> None:
    assert "things" in dict(body(get(own, "/internal/metrics")))  # type: ignore[call-overload]
    stats = body(get(own, "/stats"))
    assert isinstance(stats, dict) and [b["state"] for b in stats["backends"]] == ["up", "down"]
    assert "hidden" not in str(stats)


def test_others_are_not_ours(own: Endpoints) -> None:
    assert get(own, "/v1/chat/completions") is None
    assert get(own, "/health", "POST") is None
    assert get(own, "/health", "HEAD") is not None


def test_metrics_can_be_off(backends: Backends) -> None:
    own = Endpoints(backends, CollectorRegistry(), dict, metrics=False)
    assert get(own, "/metrics") is None and get(own, "/internal/metrics") is None and get(own, "/stats") is None
    assert get(own, "/health") is not None
