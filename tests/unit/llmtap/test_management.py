"""The way to the management API: who may, and what comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow, tutils

from llmtap.core.config import Config
from llmtap.management import Management
from llmtap.policy.keys import Client

KEYS = [{"name": "boss", "key": "sk-boss"}, {"name": "user", "key": "sk-user"}]
NOWHERE = Path("/nowhere/s")


def flow(method: str = "GET", path: str = "/api/v1/status", peer: str = "127.0.0.1", **headers: str) -> http.HTTPFlow:
    fields = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = tutils.treq(method=method.encode(), path=path.encode(), content=b"{}", headers=http.Headers(**fields))
    made = tflow.tflow(req=request)
    made.client_conn.peername = (peer, 1234)
    return made


async def asked(
    config: dict[str, Any], f: http.HTTPFlow, client: Client | None = None, socket: Path | None = NOWHERE
) -> http.Response:
    later = Management(Config.model_validate(config), socket).later(f, f.request.path, client)
    assert later is not None
    return await later()


def code(response: http.Response) -> str:
    return str(json.loads(response.content or b"{}")["error"]["code"])


@pytest.mark.parametrize("path", ["/api/chat", "/api/v1x", "/v1/models", "/api/docs/x"])
def test_other_paths_are_not_its_own(path: str) -> None:
    assert Management(Config(), NOWHERE).later(flow(path=path), path, None) is None


@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1", "/api/docs", "/api/openapi.json"])
async def test_its_paths_go_to_the_launcher_who_may_be_away(path: str) -> None:
    response = await asked({}, flow(path=path))
    assert (response.status_code, code(response)) == (503, "management_unavailable")


async def test_off_and_without_a_launcher() -> None:
    assert (await asked({"management": {"enabled": False}}, flow())).status_code == 404
    assert b"llmtap up" in ((await asked({}, flow(), socket=None)).content or b"")


@pytest.mark.parametrize(
    "headers",
    [
        {"peer": "192.168.1.9"},
        {"peer": "::ffff:10.0.0.1"},
        {"host": "evil.example:8000"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"x_forwarded_for": "10.0.0.1"},
        {"forwarded": "for=10.0.0.1"},
        {"via": "1.1 proxy"},
    ],
)
async def test_without_keys_it_is_for_this_machine_and_no_foreign_page(headers: dict[str, str]) -> None:
    response = await asked({}, flow("POST", **headers))
    assert (response.status_code, code(response)) == (403, "management_not_allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"peer": "::1", "host": "[::1]:8000"},
        {"peer": "::ffff:127.0.0.1"},
        {"host": "localhost:8000"},
        {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"},
    ],
)
async def test_whoever_is_on_this_machine_may(headers: dict[str, str]) -> None:
    assert (await asked({}, flow("POST", **headers))).status_code == 503


@pytest.mark.parametrize(("key", "status"), [("sk-boss", 503), ("sk-user", 401), ("", 401)])
async def test_keys_that_may_manage_also_without_auth(key: str, status: int) -> None:
    config = {"auth": {"keys": KEYS}, "management": {"keys": ["boss"]}}
    f = flow("POST", peer="10.0.0.1", authorization=f"Bearer {key}")
    assert (await asked(config, f)).status_code == status
    assert "authorization" not in f.request.headers


async def test_a_key_whose_time_is_over_may_not() -> None:
    keys = [{"name": "boss", "key": "sk-boss", "expires": "2020-01-01"}]
    config = {"auth": {"keys": keys}, "management": {"keys": ["boss"]}}
    assert (await asked(config, flow("POST", authorization="Bearer sk-boss"))).status_code == 401


@pytest.mark.parametrize(
    ("names", "client", "method", "status"),
    [
        (["boss"], "boss", "POST", 503),
        (["boss"], "user", "POST", 403),
        (["boss"], "user", "GET", 503),
        ([], "boss", "DELETE", 403),
        (["boss"], None, "GET", 403),
    ],
)
async def test_with_auth_named_keys_manage_and_any_key_looks(
    names: list[str], client: str | None, method: str, status: int
) -> None:
    config = {"auth": {"enabled": True, "keys": KEYS}, "management": {"keys": names}}
    response = await asked(config, flow(method), Client(client) if client is not None else None)
    assert response.status_code == status


async def test_request_and_answer_go_through_whole(tmp_path: Path) -> None:
    seen: list[bytes] = []
    body = b'{"ok":true}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head + await reader.readexactly(2))
        chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:4], body[4:])) + b"0\r\n\r\n"
        writer.write(b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nx-of-its-own: 1\r\n")
        writer.write(b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + chunked)
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        f = flow("POST", "/api/v1/backends?x=1", content_type="application/json", authorization="Bearer secret")
        later = Management(Config(), tmp_path / "s").later(f, "/api/v1/backends", None)
        assert later is not None
        response = await later()
    assert (response.status_code, response.content, response.headers["x-of-its-own"]) == (201, body, "1")
    assert response.headers["content-length"] == str(len(body)) and "transfer-encoding" not in response.headers
    assert seen[0].startswith(b"POST /api/v1/backends?x=1 HTTP/1.1\r\n") and seen[0].endswith(b"\r\n\r\n{}")
    assert b"secret" not in seen[0] and b"content-type: application/json" in seen[0]


async def test_an_answer_without_a_body_and_one_that_is_no_http(tmp_path: Path) -> None:
    answers = [b"HTTP/1.1 204 No Content\r\n\r\n", b"what?"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        nothing = await asked({}, flow("DELETE"), socket=tmp_path / "s")
        strange = await asked({}, flow("GET"), socket=tmp_path / "s")
    assert (nothing.status_code, nothing.content, "content-length" in nothing.headers) == (204, b"", False)
    assert strange.status_code == 503


@pytest.mark.parametrize(
    ("config", "headers", "status"),
    [
        ({}, {"peer": "10.0.0.1"}, 503),
        ({"management": {"enabled": False}}, {}, 503),
        ({}, {"origin": "https://evil.example"}, 403),
        ({"server": {"cors_origins": ["https://app.example"]}}, {"origin": "https://app.example"}, 503),
    ],
)
async def test_rating_is_for_whoever_asks_for_completions(config: dict[str, Any], headers: dict[str, str], status: int) -> None:
    assert (await asked(config, flow("POST", "/api/v1/exchanges/01A/ratings", **headers))).status_code == status


async def test_the_launcher_hears_whose_key_it_was(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    config = {"auth": {"enabled": True, "keys": KEYS}}
    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        for client in (Client("user"), None):
            f = flow("POST", "/api/v1/exchanges/01A/ratings", x_llmtap_client="boss")
            assert (await asked(config, f, client, tmp_path / "s")).status_code in (204, 401)
    assert b"x-llmtap-client: user" in seen[0] and b"boss" not in seen[0]
    assert len(seen) == 1  # with auth on nobody comes without a key, unless the path is exempt: then it is nobody's to rate
