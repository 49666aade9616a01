"""Keys on a running gateway: who gets in, in whose dialect the others are told, and where a key may never turn up."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from support.gateway import MITMDUMP, ROOT, SCRIPT, Gateway, free_port, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
MODEL = "sim-small"
ALICE, BOB, LATE, BACKEND = "sk-llmtap-planted-alice", "sk-llmtap-planted-bob", "sk-llmtap-planted-late", "sk-backend-planted"
STRANGER = "sk-llmtap-planted-stranger"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "tell me about keys"}], "max_tokens": 8}
PAGE = "https://app.example.org"


def entry(name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "key_sha256": sha256(key.encode()).hexdigest(), **more}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def sim() -> Iterator[SimHandle]:
    with running_sim(model=MODEL, ttft_ms=0, api_key=BACKEND) as handle:
        yield handle


def config(sim: SimHandle) -> dict[str, Any]:
    keys = [
        entry("alice", ALICE),
        entry("bob", BOB, models=["another"], max_concurrency=1),
        entry("late", LATE, expires="2020-01-01"),
    ]
    return {
        "server": {"cors_origins": [PAGE]},
        "backends": [{"name": "a", "url": sim.url, "api_key": BACKEND}],
        "auth": {"enabled": True, "keys": keys},
    }


@pytest.fixture(scope="module")
def gateway(sim: SimHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with running_gateway(folder, config(sim), options=("-w", str(folder / "flows"))) as running:
        wait_up(running)
        yield running


def test_the_official_sdk_with_a_key_and_without(gateway: Gateway, sim: SimHandle) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=ALICE, max_retries=0) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(**CHAT)  # type: ignore[call-overload]
        assert raw.parse().choices[0].message.content
        assert [m.id for m in sdk.models.list()] == [MODEL]
    begin, end = gateway.exchange(raw.headers["x-request-id"])
    assert begin["key_name"] == "alice" and end["outcome"] == "ok"
    assert gateway_metric(gateway, "llmtap_requests_total", key="alice", outcome="ok") >= 1
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=STRANGER, max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            sdk.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        assert caught.value.code == "invalid_api_key" and STRANGER not in str(caught.value)
        assert caught.value.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            sdk.models.list()
    late = httpx.get(f"{gateway.url}/v1/models", headers=bearer(LATE))
    assert late.status_code == 401 and "expired" in late.json()["error"]["message"]


def gateway_metric(gateway: Gateway, name: str, **labels: str) -> float:
    families = httpx.get(f"{gateway.url}/internal/metrics", headers=bearer(ALICE)).json()
    return sum(
        s["value"]
        for f in families.values()
        for s in f["samples"]
        if s["name"] == name and all(s["labels"].get(k) == v for k, v in labels.items())
    )


def test_the_backend_sees_its_own_key_and_never_the_clients(gateway: Gateway, sim: SimHandle) -> None:
    for headers in (bearer(ALICE), {"x-api-key": ALICE}, {**bearer(STRANGER), "x-api-key": ALICE, "api-key": STRANGER}):
        assert httpx.post(f"{gateway.url}/v1/chat/completions?api_key={STRANGER}", json=CHAT, headers=headers).status_code == 200
        seen = sim.requests("/v1/chat/completions")[-1]
        assert ALICE not in str(seen) and STRANGER not in str(seen)


def test_a_model_the_key_may_not_use(gateway: Gateway, sim: SimHandle) -> None:
    before = len(sim.requests())
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers=bearer(BOB))
    assert reply.status_code == 403 and reply.json()["error"]["code"] == "model_not_allowed"
    assert httpx.get(f"{gateway.url}/v1/models", headers=bearer(BOB)).json()["data"] == []
    assert len(sim.requests("/v1/chat/completions")) <= before


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/v1/chat/completions", CHAT, {"error": {"message", "type", "param", "code"}}),
        ("/v1/messages", {**CHAT, "max_tokens": 4}, {"type": "error", "error": {"type", "message"}}),
        ("/api/chat", CHAT, {"error": str}),
    ],
)
def test_each_dialect_is_told_its_own_way(gateway: Gateway, path: str, body: dict[str, Any], shape: Any) -> None:
    reply = httpx.post(f"{gateway.url}{path}", json=body)
    assert reply.status_code == 401
    told = reply.json()
    assert set(told) == set(shape)
    if isinstance(shape["error"], set):
        assert set(told["error"]) == shape["error"]
    if path == "/v1/messages":
        assert told["error"]["type"] == "authentication_error"


def test_no_key_is_told_before_the_body_is_read(gateway: Gateway) -> None:
    """The head says that a body will come; none does, and the answer is there all the same."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gw\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(head)
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_own_endpoints_need_a_key_but_for_health(gateway: Gateway) -> None:
    for path in ("/health", "/internal/healthz", "/health/ready"):
        assert httpx.get(f"{gateway.url}{path}").status_code == 200
    for path in ("/metrics", "/internal/metrics", "/stats", "/v1/models"):
        assert httpx.get(f"{gateway.url}{path}").status_code == 401
        assert httpx.get(f"{gateway.url}{path}", headers=bearer(ALICE)).status_code == 200
    assert gateway_metric(gateway, "llmtap_refusals_total", code="invalid_api_key") >= 4


def test_a_websocket_needs_one_too(gateway: Gateway) -> None:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "x" * 22 + "==",
    }
    assert httpx.get(f"{gateway.url}/v1/realtime?model={MODEL}", headers=upgrade).status_code == 401


def test_web_pages(gateway: Gateway) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    told = httpx.options(f"{gateway.url}/v1/chat/completions", headers=asked)
    assert told.status_code == 204 and told.headers["access-control-allow-origin"] == PAGE
    assert told.headers["access-control-allow-headers"] == "authorization"
    other = httpx.options(f"{gateway.url}/v1/chat/completions", headers={**asked, "origin": "https://evil.example.org"})
    assert "access-control-allow-origin" not in other.headers
    with httpx.Client(headers={"origin": PAGE}) as page:
        good = page.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers=bearer(ALICE))
        refused = page.post(f"{gateway.url}/v1/chat/completions", json=CHAT)
        own = page.get(f"{gateway.url}/v1/models", headers=bearer(ALICE))
    for reply in (good, refused, own):
        assert reply.headers["access-control-allow-origin"] == PAGE, reply.status_code
        assert "x-request-id" in reply.headers["access-control-expose-headers"] and "origin" in reply.headers["vary"]
    assert (good.status_code, refused.status_code) == (200, 401)
    assert httpx.options(f"{gateway.url}/v1/chat/completions").status_code == 401, "no preflight: an ordinary request"


def test_a_key_that_is_taken_out_of_the_file_stops_working(sim: SimHandle, tmp_path: Path) -> None:
    with running_gateway(tmp_path, config(sim)) as gateway:
        wait_up(gateway)
        file = tmp_path / "llmtap.yaml"
        document = yaml.safe_load(file.read_text())

        def status(key: str) -> int:
            return httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers=bearer(key)).status_code

        assert (status(ALICE), status(STRANGER)) == (200, 401)
        file.write_text("auth: {enabled: true, keys: [{name: x")
        eventually(lambda: any("the configuration stays as it was" in line for line in gateway.output), "not told")
        assert (status(ALICE), status(STRANGER)) == (200, 401), "a broken file changes nothing"
        file.write_text("{}")
        eventually(lambda: any("cannot be turned off" in line for line in gateway.output), "not told")
        assert (status(ALICE), status(STRANGER)) == (200, 401), "nor does an empty one open the gateway"
        document["auth"]["keys"] = [entry("new", STRANGER)]
        file.write_text(yaml.safe_dump(document))
        eventually(lambda: status(ALICE) == 401, "the old key still works")
        assert status(STRANGER) == 200


@pytest.mark.parametrize("mode", [None, "reverse"])
def test_a_gateway_open_to_others_does_not_start(tmp_path: Path, mode: str | None, sim: SimHandle) -> None:
    port = free_port()
    argv = [*MITMDUMP, "-q", "-s", str(SCRIPT), "--listen-host", "0.0.0.0", "--listen-port", str(port)]
    if mode is not None:
        argv += ["--mode", f"reverse:{sim.url}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMTAP_")} | {"LLMTAP_CAPTURE__DIR": str(tmp_path)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 1 and "reachable from other machines and auth is off" in done.stdout + done.stderr
    with running_gateway(tmp_path / "2", config(sim) | {"server": {"host": "0.0.0.0"}}):
        pass
    insecure = {"server": {"host": "0.0.0.0"}, "backends": []}
    with running_gateway(tmp_path / "3", insecure, options=("--set", "llmtap_insecure=true")):
        pass


def test_keys_in_a_stock_mode(sim: SimHandle, tmp_path: Path) -> None:
    """mitmproxy's own reverse mode: the same door."""
    with running_gateway(tmp_path, config(sim) | {"backends": []}, mode=f"reverse:{sim.url}") as gateway:
        wait_up(gateway)
        chat = f"{gateway.url}/v1/chat/completions"
        assert httpx.post(chat, json=CHAT).status_code == 401
        assert httpx.post(chat, json=CHAT, headers=bearer(STRANGER)).status_code == 401
        # let in; and the backend, which has a key of its own that this gateway does not know, was given none
        assert httpx.post(chat, json=CHAT, headers=bearer(ALICE)).json() == {"error": "Unauthorized"}
        assert ALICE not in str(sim.requests("/v1/chat/completions")[-1])


def test_no_key_is_in_anything_the_gateway_has_written(gateway: Gateway) -> None:
    """Last: after all the others, in the spool, the database, the flows of `-w`, the log and the metrics."""
    for key in (ALICE, BOB, LATE, STRANGER):
        for headers in (bearer(key), {"x-api-key": key}):
            httpx.post(f"{gateway.url}/v1/chat/completions?api_key={key}", json={**CHAT, "stream": True}, headers=headers)
            httpx.get(f"{gateway.url}/metrics", headers=headers)
    metrics = httpx.get(f"{gateway.url}/metrics", headers=bearer(ALICE)).text
    assert gateway.stop(signal.SIGTERM) == 0
    flows = gateway.data / "flows"
    assert flows.stat().st_size > 1000
    files = [path for path in gateway.data.rglob("*") if path.is_file() and path.name != "llmtap.yaml"]
    written = {str(path): path.read_bytes() for path in files}
    assert any("spool" in name for name in written)
    stored = subprocess.run(
        [sys.executable, "-m", "llmtap_launcher", "ingest", "--dir", str(gateway.data)],
        capture_output=True,
        check=True,
        cwd=gateway.data,
        env={name: value for name, value in os.environ.items() if not name.startswith("LLMTAP_")},
    )
    dump, exchanges = everything_in(gateway)
    assert exchanges > 10
    files = [path for path in gateway.data.rglob("*") if path.is_file() and path.name != "llmtap.yaml"]
    written |= {f"{path} after": path.read_bytes() for path in files}  # the writer's: database, archive, marks
    written |= {"tables": dump, "ingest": stored.stdout + stored.stderr}
    written["log"], written["metrics"] = "".join(gateway.output).encode(), metrics.encode()
    for name, content in written.items():
        for secret in (ALICE, BOB, LATE, STRANGER, BACKEND):
            assert secret.encode() not in content, f"{secret} in {name}"


def everything_in(gateway: Gateway) -> tuple[bytes, int]:
    """Every value of every table of the database, and how many exchanges there are."""
    (database,) = gateway.data.rglob("capture.db")
    with closing(sqlite3.connect(database)) as conn:
        tables = [name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
        assert {"exchanges", "messages", "bodies", "segments"} <= set(tables)
        values = (value for table in tables for row in conn.execute(f'SELECT * FROM "{table}"') for value in row)
        dump = b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)
        assert b"tell me about keys" in dump
        return dump, conn.execute("SELECT count(*) FROM exchanges").fetchone()[0]


def test_the_command_of_the_page() -> None:
    page = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    command = re.findall(r"^\$ llmtap (keys .+)$", page, re.M)
    assert command == ["keys new production"]
    done = subprocess.run(
        [sys.executable, "-m", "llmtap_launcher", *command[0].split()], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("sk-llmtap-") and 'name: "production"' in done.stdout
