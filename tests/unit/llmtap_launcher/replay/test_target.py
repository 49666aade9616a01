"""Where requests are sent again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.config import Config
from llmtap.core.errors import LlmtapError
from llmtap_launcher.replay.target import Target, target_of
from llmtap_launcher.runtime import RunFolder


def config(folder: Path, **more: Any) -> Config:
    return Config.model_validate({"capture": {"dir": folder}, **more})


def test_the_gateway_of_the_configuration(tmp_path: Path) -> None:
    found = target_of(None, config(tmp_path, server={"host": "0.0.0.0", "port": 9000}), "sk-x")
    assert found == Target("gateway", "http://127.0.0.1:9000/v1", "sk-x", True)


def test_the_gateway_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"urls": {"gateway": "http://127.0.0.1:1234"}, "backends": [{"name": "a", "url": "http://127.0.0.1:4321"}]}
    monkeypatch.setattr(RunFolder, "running", lambda self: json.loads(json.dumps(state)))
    assert target_of(None, config(tmp_path)) == Target("gateway", "http://127.0.0.1:1234/v1", None, True)
    assert target_of("a", config(tmp_path), "sk-x") == Target("a", "http://127.0.0.1:4321/v1", None, False)
    # its address as a URL is the gateway, too: it records
    assert target_of("http://localhost:1234", config(tmp_path)) == Target("gateway", "http://localhost:1234/v1", None, True)


def test_a_backend_gets_its_own_key(tmp_path: Path) -> None:
    backends = [
        {"name": "big", "url": "https://big.example", "api_key": "sk-big"},
        {"name": "socket", "url": "unix:///run/vllm.sock"},
    ]
    found = target_of("big", config(tmp_path, backends=backends), "sk-gateway")
    assert found == Target("big", "https://big.example/v1", "sk-big", False)
    with pytest.raises(LlmtapError, match="through the gateway only"):
        target_of("socket", config(tmp_path, backends=backends))
    with pytest.raises(LlmtapError, match=r"--to small: neither a backend \(big, socket\) nor a URL"):
        target_of("small", config(tmp_path, backends=backends))


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("http://127.0.0.1:8082", "http://127.0.0.1:8082/v1"),
        ("http://127.0.0.1:8082/", "http://127.0.0.1:8082/v1"),
        ("http://127.0.0.1:8082/v1", "http://127.0.0.1:8082/v1"),
        ("https://example.org/openai/v1/", "https://example.org/openai/v1"),
    ],
)
def test_urls(tmp_path: Path, text: str, base: str) -> None:
    found = target_of(text, config(tmp_path), "sk-x")
    assert (found.base_url, found.api_key, found.records) == (base, "sk-x", False)


@pytest.mark.parametrize("text", ["ftp://x", "http://", "http://h:99999", "http://h/v1?x=1", "http://h/#x"])
def test_what_is_no_url(tmp_path: Path, text: str) -> None:
    with pytest.raises(LlmtapError, match="is no base URL"):
        target_of(text, config(tmp_path))
