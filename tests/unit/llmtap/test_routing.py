"""Routing: the gate at the head, and what is found out with the body."""

from __future__ import annotations

from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.config import Config
from llmtap.core.endpoints import OTHER, direct, endpoint_of
from llmtap.core.errors import BadRequest, NoHealthyBackend, NotFound, TooLarge
from llmtap.core.record import Summary
from llmtap.exchange import Exchange
from llmtap.policy.backends import Backend, Backends
from llmtap.routing import Routing
from llmtap.wire.request import parse


def routing(*backends: Backend, policy: str = "least_connections", **config: Any) -> Routing:
    known = Backends(backends or (Backend("a", "10.0.0.1", 8081, models=("m",), state="up"),), policy)
    return Routing(Config.model_validate(config), known)


def arriving(
    path: str = "/v1/chat/completions", method: str = "POST", body: bytes | None = None, **headers: str
) -> tuple[http.HTTPFlow, Exchange]:
    flow = tflow.tflow()
    flow.request = http.Request.make(method, f"http://gateway:8000{path}", b"", {})
    for name, value in headers.items():
        flow.request.headers[name.replace("_", "-")] = value
    path = path.partition("?")[0]
    straight = direct(path)
    endpoint = endpoint_of(straight[1] if straight else path) or OTHER
    ex = Exchange(method, path, endpoint, "openai", "127.0.0.1")
    ex.direct = straight
    ex.session_hint = headers.get("x_session_id")
    if endpoint.json_body:
        ex.parsed = parse(endpoint.name, body or b'{"model":"m","messages":[{"role":"user","content":"hi"}]}')
    return flow, ex


def passes(gate: Routing, *args: Any, **headers: str) -> Exchange:
    flow, ex = arriving(*args, **headers)
    gate.on_requestheaders(flow, ex)
    gate.on_request(flow, ex)
    assert ex.route is not None
    return ex


# ---- the head


def test_control_routes_need_permission() -> None:
    with pytest.raises(NotFound) as caught:
        routing().on_requestheaders(*arriving("/sleep"))
    assert caught.value.code == "path_not_allowed" and "routing.allow_paths" in caught.value.message
    ex = passes(routing(routing={"allow_paths": ["/sleep"]}), "/sleep")
    assert ex.route is not None and ex.route.idempotent is False and ex.route.scope == "any"
    assert passes(routing(routing={"allow_paths": ["/is_sleeping"]}), "/is_sleeping", "GET").route.idempotent  # type: ignore[union-attr]


def test_methods() -> None:
    with pytest.raises(BadRequest) as caught:
        routing().on_requestheaders(*arriving(method="GET"))
    assert caught.value.code == "method_not_allowed"


def test_declared_and_real_size() -> None:
    gate = routing(server={"max_body_mb": 1})
    with pytest.raises(TooLarge) as caught:
        gate.on_requestheaders(*arriving(content_length=str((1 << 20) + 1)))
    assert "1 MiB" in caught.value.message
    gate.on_requestheaders(*arriving(content_length=str(1 << 20)))
    flow, ex = arriving()
    ex.body = b"x" * ((1 << 20) + 1)
    with pytest.raises(TooLarge):
        gate.on_request(flow, ex)


def test_ollamas_own_paths_go_to_an_ollama_where_there_is_one() -> None:
    vllm = Backend("a", "h", 1, models=("m",), state="up")
    ollama = Backend("o", "h", 11434, models=("m",), state="up", kind="ollama")
    scopes = {path: passes(routing(vllm, ollama), path).route.scope for path in ("/api/chat", "/tokenize", "/v1/completions")}  # type: ignore[union-attr]
    assert scopes == {"/api/chat": "ollama", "/tokenize": "openai", "/v1/completions": "any"}
    assert passes(routing(vllm), "/api/chat").route.scope == "any"  # type: ignore[union-attr]
    with pytest.raises(NoHealthyBackend):  # /tokenize is vLLM's
        passes(routing(ollama), "/tokenize")


# ---- /proxy/<port>/


@pytest.mark.parametrize(
    ("direct_ports", "path", "method", "passed"),
    [
        ([], "/proxy/8081/v1/chat/completions", "POST", True),
        ([], "/proxy/8081/health", "GET", True),
        ([], "/proxy/8081/health", "POST", False),
        ([], "/proxy/8081/sleep", "POST", False),
        ([], "/proxy/8081/", "GET", False),
        ([], "/proxy/8081/anything", "GET", False),
        ([], "/proxy/9000/v1/chat/completions", "POST", False),
        ([9000], "/proxy/9000/anything", "PUT", True),
        ([9000], "/proxy/9000/", "GET", True),
        ([9000], "/proxy/9000/sleep", "POST", False),
        ([9000], "/proxy/9000/SLEEP/", "POST", False),
        ([9000], "/proxy/9000/api/pull", "POST", False),
        ([9000], "/proxy/8081/v1/chat/completions", "POST", False),
        ([], "/proxy/8081", "GET", False),
        ([], "/proxy/08081/v1/models", "GET", False),
        ([], "/proxy/70000/v1/models", "GET", False),
        ([], "/proxy/x/v1/models", "GET", False),
        ([], "/proxy//v1/models", "GET", False),
    ],
)
def test_open_ports(direct_ports: list[int], path: str, method: str, passed: bool) -> None:
    gate = routing(routing={"direct_ports": direct_ports})
    if passed:
        gate.on_requestheaders(*arriving(path, method))
    else:
        with pytest.raises(NotFound) as caught:
            gate.on_requestheaders(*arriving(path, method))
        assert caught.value.code == "path_not_allowed"


def test_a_path_that_is_allowed_is_allowed_there_too() -> None:
    routing(routing={"allow_paths": ["/sleep"]}).on_requestheaders(*arriving("/proxy/8081/sleep"))


def test_the_prefix_goes_the_query_stays() -> None:
    flow, ex = arriving("/proxy/8081/v1/chat/completions?a=b%20c&d=//")
    gate = routing()
    gate.on_request(flow, ex)
    assert flow.request.path == "/v1/chat/completions?a=b%20c&d=//"
    assert ex.route is not None and ex.route.scope == 8081 and ex.route.model is None and ex.route.only is None


def test_a_port_beside_the_backends() -> None:
    gate = routing(routing={"direct_ports": [9000]})
    flow, ex = arriving("/proxy/9000/caf%C3%A9/x", "GET")
    ex.direct = (9000, "/caf\u00e9/x")
    gate.on_request(flow, ex)
    assert flow.request.path == "/caf%C3%A9/x"
    assert ex.route is not None and ex.route.only is not None
    assert (ex.route.only.target.host, ex.route.only.target.port) == ("127.0.0.1", 9000)


# ---- with the body


def test_nobody_serves_the_model() -> None:
    with pytest.raises(NotFound) as caught:
        passes(routing(), "/v1/chat/completions", "POST", b'{"model":"other"}')
    assert caught.value.code == "model_not_found"
    with pytest.raises(NoHealthyBackend):
        passes(routing(Backend("a", "h", 1, models=("m",), state="down")))


def test_bodies_nobody_needs_go_on_as_they_come() -> None:
    known = Backends([Backend("a", "10.0.0.1", 8081)])
    gate = Routing(Config.model_validate({"server": {"max_body_mb": 1}}), known, lambda r, ex: True)
    flow, ex = arriving("/v1/audio/transcriptions", content_length=str(5 << 20))
    with pytest.raises(TooLarge):
        gate.on_requestheaders(flow, ex)  # a stock mode would hold it whole
    ex.lane = True
    gate.on_requestheaders(flow, ex)
    assert flow.request.stream is True
    flow, ex = arriving(content_length=str(5 << 20))
    ex.lane = True
    with pytest.raises(TooLarge):
        gate.on_requestheaders(flow, ex)
    assert not flow.request.stream


def test_a_realtime_session_says_its_model_in_the_query() -> None:
    ex = passes(routing(), "/v1/realtime?model=m", "GET")
    assert ex.route is not None and ex.route.model == "m"


def test_keys_are_made_only_where_they_are_used() -> None:
    plain, hashed = passes(routing()), passes(routing(policy="prefix_hash"), x_session_id="s")
    assert plain.route is not None and plain.route.key is None and plain.route.session is None
    assert hashed.route is not None and hashed.route.key is not None and hashed.route.session is not None


def test_what_refers_to_a_response_goes_where_that_is() -> None:
    gate = routing()
    ex = passes(gate, "/v1/responses", "POST", b'{"model":"m","input":"x"}')
    ex.backend, ex.summary = "a", Summary(response_id="resp_1")
    gate.on_finish(tflow.tflow(), ex)
    follows = passes(gate, "/v1/responses", "POST", b'{"model":"m","input":"x","previous_response_id":"resp_1"}')
    assert follows.route is not None and follows.route.home == "a"
    asked = passes(gate, "/v1/responses/resp_1", "GET")
    assert asked.route is not None and asked.route.home == "a"
    assert passes(gate, "/v1/responses/resp_2/cancel").route.home is None  # type: ignore[union-attr]
