"""Where the snapshot is, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from llmtap.core.config import Config
from llmtap_launcher.gateway_metrics import NoMetrics, client_for, fetch_snapshot, snapshot_url

URL = "http://127.0.0.1:9/internal/metrics"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"capture": {"dir": str(tmp_path)}, "server": {"port": 9, "host": "0.0.0.0"}})


@pytest.mark.parametrize(
    "given",
    [
        None,
        "127.0.0.1:9",
        "http://127.0.0.1:9",
        "http://127.0.0.1:9/",
        "http://127.0.0.1:9/v1",
        URL,
        "http://127.0.0.1:9/metrics",
    ],
)
def test_the_address(config: Config, given: str | None) -> None:
    assert snapshot_url(given, config) == URL


@pytest.mark.parametrize("given", ["ftp://x", "http://", "http://x:y", "http://x:99999", "http://[x"])
def test_no_address(config: Config, given: str) -> None:
    with pytest.raises(NoMetrics, match="is no address of a gateway"):
        snapshot_url(given, config)


def asked(reply: httpx.Response | httpx.HTTPError) -> object:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(reply, Exception):
            raise reply
        return reply

    with httpx.Client(transport=httpx.MockTransport(handle)) as client:
        return fetch_snapshot(client, URL)


def test_a_snapshot() -> None:
    found = {"llmtap_requests": {"type": "counter", "help": "", "samples": []}}
    assert asked(httpx.Response(200, json=found)) == found


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx.Response(401), "wants a key"),
        (httpx.Response(404), "metrics.enabled is false"),
        (httpx.Response(500), "answers 500"),
        (httpx.Response(200, text="<html>"), "is no metrics snapshot"),
        (httpx.Response(200, json=[1]), "is no metrics snapshot"),
        (httpx.Response(200, json={"a": 1}), "is no metrics snapshot"),
        (httpx.ConnectError("refused"), "no gateway answers at"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_what_is_said(reply: httpx.Response | httpx.HTTPError, message: str) -> None:
    with pytest.raises(NoMetrics, match=message) as caught:
        asked(reply)
    assert "\n" not in str(caught.value)


def test_the_key_is_presented() -> None:
    with client_for("k") as client, client_for(None) as plain:
        assert client.headers["authorization"] == "Bearer k" and "authorization" not in plain.headers
