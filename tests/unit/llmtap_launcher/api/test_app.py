"""The application: every error in one shape, its own description."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtap.core.config import Config
from support.fleet import running_fleet


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/v1/nothing", None, 404, "not_found"),
        ("PUT", "/api/v1/status", None, 405, "method_not_allowed"),
        ("POST", "/api/v1/inference/up", {}, 422, "bad_request"),
        ("POST", "/api/v1/inference/up", {"model": "m", "modle": 1}, 422, "bad_request"),
        ("POST", "/api/v1/inference/up", {"model": "--trust-remote-code"}, 422, "bad_request"),
        ("POST", "/api/v1/inference/up", {"model": "m", "args": {"port": 1}}, 422, "bad_request"),
        ("GET", "/api/v1/backends/x", None, 404, "not_found"),
    ],
)
async def test_errors_have_one_shape(tmp_path: Path, method: str, path: str, body: object, status: int, code: str) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        answer = await client.request(method, path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"} and error["message"]


async def test_a_body_that_is_no_json_and_a_value_that_is_secret(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        broken = await client.post("/api/v1/inference/up", content=b"{", headers={"content-type": "application/json"})
        secret = await client.post("/api/v1/backends", json={"url": "http://127.0.0.1:1", "api_key": ["sk-secret"]})
    assert broken.status_code == secret.status_code == 422
    assert "sk-secret" not in secret.text and secret.json()["error"]["param"] == "api_key"


async def test_it_describes_itself(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Config()) as bench, bench.client() as client:
        description = (await client.get("/api/openapi.json")).json()
        page = await client.get("/api/docs")
    assert {"/api/v1/status", "/api/v1/inference/up", "/api/v1/backends/{name}"} <= set(description["paths"])
    for operations in description["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"] and "4XX" in operation["responses"]
    assert (
        page.headers["content-type"].startswith("text/html") and "default-src 'none'" in page.headers["content-security-policy"]
    )
