"""Routing: the gate at the head, the choice with the body, and what goes on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.config import Config
from llmtap.core.endpoints import OTHER, endpoint_of
from llmtap.core.errors import BadRequest, NotFound, TooLarge
from llmtap.exchange import Exchange
from llmtap.policy.backends import Backend, Backends
from llmtap.routing import Routing
from llmtap.wire.request import parse


def routing(*backends: Backend, **config: Any) -> tuple[Routing, Backends]:
    known = Backends(backends or (Backend("a", "10.0.0.1", 8081, models=("m",), state="up"),))
    return Routing(Config.model_validate(config), known, lambda name, reason: None), known


def arriving(path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> tuple[http.HTTPFlow, Exchange]:
    flow = tflow.tflow()
    fields = {"host": "gateway:8000", **{k.replace("_", "-"): v for k, v in headers.items()}}
    flow.request = http.Request.make(method, f"http://gateway:8000{path}", b"", {})
    for name, value in fields.items():
        flow.request.headers[name] = value
    ex = Exchange(method, path, endpoint_of(path) or OTHER, "openai", "127.0.0.1")
    ex.parsed = parse("chat", b'{"model":"m","messages":[]}')
    return flow, ex


def test_control_routes_need_permission() -> None:
    gate, _ = routing()
    with pytest.raises(NotFound) as caught:
        gate.on_requestheaders(*arriving("/sleep"))
    assert caught.value.code == "path_not_allowed" and "routing.allow_paths" in caught.value.message
    gate, _ = routing(routing={"allow_paths": ["/sleep"]})
    gate.on_requestheaders(*arriving("/sleep"))


def test_methods() -> None:
    gate, _ = routing()
    with pytest.raises(BadRequest) as caught:
        gate.on_requestheaders(*arriving(method="GET"))
    assert caught.value.code == "method_not_allowed"


def test_declared_and_real_size() -> None:
    gate, _ = routing(server={"max_body_mb": 1})
    with pytest.raises(TooLarge) as caught:
        gate.on_requestheaders(*arriving(content_length=str((1 << 20) + 1)))
    assert "1 MiB" in caught.value.message
    gate.on_requestheaders(*arriving(content_length=str(1 << 20)))
    flow, ex = arriving()
    ex.body = b"x" * ((1 << 20) + 1)
    with pytest.raises(TooLarge):
        gate.on_request(flow, ex)


def test_where_it_goes_and_what_it_takes_along() -> None:
    gate, known = routing(Backend("a", "10.0.0.1", 8081, models=("m",), state="up", api_key="backend-key"))
    flow, ex = arriving(authorization="Bearer client-key", x_api_key="client-key", x_llmtap_tags="t", accept_encoding="br")
    gate.on_request(flow, ex)
    sent = flow.request
    assert (sent.host, sent.port, sent.scheme) == ("10.0.0.1", 8081, "http")
    assert sent.headers["host"] == "10.0.0.1:8081" and sent.headers["accept-encoding"] == "identity"
    assert sent.headers["authorization"] == "Bearer backend-key" and "x-api-key" not in sent.headers
    assert "x-llmtap-tags" not in sent.headers and sent.headers["x-request-id"] == ex.uid
    assert ex.backend == "a" and ex.plan is not None and known["a"].in_flight == 1
    gate.on_finish(flow, ex)
    assert known["a"].in_flight == 0


def test_without_a_backend_key_the_clients_own_is_passed_in_the_form_vllm_reads() -> None:
    gate, _ = routing()
    flow, ex = arriving(x_api_key="client-key")
    gate.on_request(flow, ex)
    assert flow.request.headers["authorization"] == "Bearer client-key"


def test_a_retry_moves_the_load_to_the_backend_that_served() -> None:
    gate, known = routing(Backend("a", "h", 1, state="up"), Backend("b", "h", 2, state="up"))
    flow, ex = arriving()
    gate.on_request(flow, ex)
    assert ex.plan is not None
    first, second = ex.plan.candidates
    assert known[first.backend].in_flight == 1
    ex.plan.served_by = second
    gate.on_responseheaders(flow, ex)
    assert (known[first.backend].in_flight, known[second.backend].in_flight) == (0, 1)
    gate.on_finish(flow, ex)
    assert {b.in_flight for b in known} == {0}


def test_ipv6_and_tls() -> None:
    gate, _ = routing(Backend("a", "::1", 443, tls=True, state="up"))
    flow, ex = arriving()
    gate.on_request(flow, ex)
    assert flow.request.scheme == "https" and flow.request.headers["host"] == "[::1]:443"


def test_failures_are_reported() -> None:
    told: list[tuple[str, str]] = []
    known = Backends([Backend("a", "h", 1, state="up")])
    gate = Routing(Config(), known, lambda name, reason: told.append((name, reason)))
    flow, ex = arriving()
    gate.on_request(flow, ex)
    assert ex.plan is not None and ex.plan.on_failure is not None
    ex.plan.on_failure(ex.plan.candidates[0], "refused")
    assert told == [("a", "refused")]


def test_a_socket_is_a_target_without_an_address() -> None:
    backend = Backend("a", "", 80, uds="/run/vllm.sock", drain=True)
    gate, _ = routing(backend)
    flow, ex = arriving()
    ex.lane = True
    gate.on_request(flow, ex)
    assert ex.plan is not None
    (target,) = ex.plan.candidates
    assert (target.uds, target.host, target.host_header, target.drain) == ("/run/vllm.sock", "localhost", b"localhost", True)


def test_bodies_nobody_needs_go_on_as_they_come() -> None:
    known = Backends([Backend("a", "10.0.0.1", 8081)])
    gate = Routing(Config.model_validate({"server": {"max_body_mb": 1}}), known, lambda name, reason: None, lambda r, ex: True)
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
