"""The door: who is let in, what a request bears afterwards, models and requests at the same time."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.auth import Auth
from llmtap.core.config import Config
from llmtap.core.endpoints import OTHER, endpoint_of
from llmtap.core.errors import Forbidden, TooMany, Unauthorized
from llmtap.exchange import Exchange
from llmtap.policy.keys import Client
from llmtap.wire.request import parse

SECRET = "sk-llmtap-secret"


def auth(clock: float = 0.0, exempt: list[str] | None = None, **key: Any) -> Auth:
    entry = {"name": "alice", "key_sha256": sha256(SECRET.encode()).hexdigest(), **key}
    section: dict[str, Any] = {"enabled": True, "keys": [entry]}
    if exempt is not None:
        section["exempt_paths"] = exempt
    return Auth(Config.model_validate({"auth": section}).auth, lambda: clock)


def arriving(path: str = "/v1/chat/completions", **headers: str) -> http.HTTPFlow:
    flow = tflow.tflow()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    flow.request = http.Request.make("POST", f"http://gw{path}", b"", {"accept": "*/*", **fields})
    return flow


def exchange(client: Client | None, body: bytes = b'{"model":"m"}', path: str = "/v1/chat/completions") -> Exchange:
    ex = Exchange("POST", path, endpoint_of(path) or OTHER, "openai", "")
    ex.client = client
    if ex.endpoint.json_body:
        ex.parsed = parse(ex.endpoint.name, body)
    return ex


@pytest.mark.parametrize("header", ["authorization", "x_api_key"])
def test_a_key_is_known_by_its_name_and_gone(header: str) -> None:
    flow = arriving(**{header: f"Bearer {SECRET}" if header == "authorization" else SECRET})
    client = auth().admit(flow, "/v1/chat/completions")
    assert client is not None and client.name == "alice"
    assert SECRET not in str(flow.request.headers) and flow.request.headers["accept"] == "*/*"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "no API key"),
        ({"authorization": "Bearer sk-other"}, "invalid API key"),
        ({"authorization": SECRET}, "no API key"),
        ({"authorization": f"Basic {SECRET}"}, "no API key"),
        ({"x_api_key": "wrong", "authorization": "Bearer "}, "invalid API key"),
    ],
)
def test_others_stay_outside_and_their_key_is_gone_too(headers: dict[str, str], words: str) -> None:
    flow = arriving("/v1/chat/completions?api_key=sk-other&x=1", **headers)
    with pytest.raises(Unauthorized) as caught:
        auth().admit(flow, "/v1/chat/completions")
    assert caught.value.status == 401 and caught.value.code == "invalid_api_key" and words in caught.value.message
    assert not any(name in flow.request.headers for name in ("authorization", "x-api-key"))
    assert flow.request.path == "/v1/chat/completions?x=1"
    assert "sk-other" not in caught.value.message


def test_the_second_of_two_keys_may_be_the_valid_one() -> None:
    client = auth().admit(arriving(authorization="Bearer placeholder", x_api_key=SECRET), "/v1/messages")
    assert client is not None


def test_expiry() -> None:
    flow = arriving(x_api_key=SECRET)
    assert auth(clock=1893455999.0, expires="2030-01-01").admit(flow, "/v1/models") is not None
    with pytest.raises(Unauthorized, match="expired"):
        auth(clock=1893456000.0, expires="2030-01-01").admit(arriving(x_api_key=SECRET), "/v1/models")


def test_exempt_paths_and_what_is_below_them() -> None:
    gate = auth()
    for path in ("/health", "/health/ready", "/internal/healthz"):
        assert gate.admit(arriving(path), path) is None
    for path in ("/healthy", "/internal", "/metrics", None):
        with pytest.raises(Unauthorized):
            gate.admit(arriving(), path)
    named = auth().admit(arriving("/health", x_api_key=SECRET), "/health")
    assert named is not None, "a key counts where none is needed, too"
    with pytest.raises(Unauthorized):
        auth(exempt=[]).admit(arriving(), "/health")


def test_a_replay_is_the_operators_own() -> None:
    flow = arriving()
    flow.is_replay = "request"
    assert auth().admit(flow, "/v1/chat/completions") is None


def test_other_keys_from_one_request_to_the_next() -> None:
    gate = auth()
    gate.reload(Config.model_validate({"auth": {"keys": [{"name": "bob", "key": "other-key"}]}}).auth)
    with pytest.raises(Unauthorized):
        gate.admit(arriving(x_api_key=SECRET), "/v1/models")
    client = gate.admit(arriving(x_api_key="other-key"), "/v1/models")
    assert client is not None and client.name == "bob"


def test_models_of_a_key() -> None:
    gate = auth(models=["m"])
    client = gate.admit(arriving(x_api_key=SECRET), "/v1/chat/completions")
    gate.on_request(arriving(), exchange(client))
    for body, word in ((b'{"model":"n"}', "`n`"), (b"{}", "names no model")):
        with pytest.raises(Forbidden, match=word) as caught:
            gate.on_request(arriving(), exchange(client, body))
        assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")
    gate.on_request(arriving(), exchange(client, path="/version"))
    with pytest.raises(Forbidden):  # a form: the model is in a part nobody reads
        gate.on_request(arriving(), exchange(client, path="/v1/audio/transcriptions"))
    gate.on_request(arriving("/v1/realtime?model=m"), exchange(client, path="/v1/realtime"))
    with pytest.raises(Forbidden):
        gate.on_request(arriving("/v1/realtime?model=n"), exchange(client, path="/v1/realtime"))
    gate.on_request(arriving(), exchange(None, b'{"model":"n"}'))  # an exempt path


def test_requests_at_the_same_time() -> None:
    gate = auth(max_concurrency=2)
    client = gate.admit(arriving(x_api_key=SECRET), "/v1/chat/completions")
    first, second, third = (exchange(client) for _ in range(3))
    gate.on_requestheaders(arriving(), first)
    gate.on_requestheaders(arriving(), second)
    with pytest.raises(TooMany) as caught:
        gate.on_requestheaders(arriving(), third)
    assert caught.value.status == 429 and caught.value.retry_after_s == 1
    gate.on_finish(arriving(), third)  # it was never counted
    with pytest.raises(TooMany):
        gate.on_requestheaders(arriving(), third)
    gate.on_finish(arriving(), first)
    gate.on_finish(arriving(), first)
    gate.on_requestheaders(arriving(), third)
    for ex in (second, third):
        gate.on_finish(arriving(), ex)
    assert gate._busy == {}
