"""Warnings: what deserves one, and that an ordinary configuration has none."""

from __future__ import annotations

from typing import Any

import pytest

from llmtap.core.config import Config
from llmtap.core.config_advice import advice, is_loopback

BACKENDS = [{"name": "a", "url": "http://127.0.0.1:8081"}]
KEYS = [{"name": "a", "key_sha256": "0" * 64}]


def keys(**sections: Any) -> list[str]:
    return [a.key for a in advice(Config.model_validate({"backends": BACKENDS} | sections))]


def test_an_ordinary_configuration_has_none() -> None:
    assert keys() == []
    assert keys(server={"host": "localhost"}, datasette={"host": "::1"}) == []


def test_an_open_gateway() -> None:
    assert keys(server={"host": "0.0.0.0"}) == ["server.host"]
    assert keys(server={"host": "gpu.example.org"}) == ["server.host"]
    assert keys(server={"host": "0.0.0.0"}, auth={"enabled": True, "keys": KEYS}) == []


def test_an_open_gateway_does_not_start_unless_insisted() -> None:
    def said(**server: Any) -> str:
        (found,) = advice(Config.model_validate({"backends": BACKENDS, "server": {"host": "0.0.0.0", **server}}))
        return found.message

    assert "the gateway will not start" in said() and "whoever reaches port 8000" in said(insecure=True)


def test_keys() -> None:
    assert keys(auth={"enabled": True}) == ["auth.keys"]
    assert keys(auth={"keys": KEYS}) == ["auth.keys"]
    clear = {"name": "b", "key": "in-clear"}
    (found,) = advice(Config.model_validate({"backends": BACKENDS, "auth": {"enabled": True, "keys": [*KEYS, clear]}}))
    assert found.key == "auth.keys[1].key" and "in-clear" not in str(found)


def test_what_each_worker_counts_by_itself() -> None:
    several = {"server": {"workers": 2}}
    assert keys(**several) == []
    assert keys(rate_limit={"enabled": True}, **several) == ["rate_limit.storage"]
    assert keys(rate_limit={"enabled": True, "storage": "redis://h:1/0"}, **several) == []
    limited = {"enabled": True, "keys": [*KEYS, {"name": "b", "key_sha256": "1" * 64, "max_concurrency": 3}]}
    assert keys(auth=limited) == []
    assert keys(auth=limited, **several) == ["auth.keys[1].max_concurrency"]


def test_an_open_database_page() -> None:
    assert keys(datasette={"host": "0.0.0.0"}) == ["datasette.host"]
    assert keys(datasette={"host": "0.0.0.0", "enabled": False}) == []
    assert keys(datasette={"host": "0.0.0.0"}, capture={"enabled": False}) == []


def test_no_backend() -> None:
    assert keys(backends=[]) == ["backends"]


def test_the_gateway_as_its_own_backend() -> None:
    assert keys(backends=[{"name": "a", "url": "http://localhost:8000"}]) == ["backends[0].url"]
    assert keys(backends=[{"name": "a", "url": "http://gpu:8000"}]) == []
    assert keys(backends=[{"name": "a", "launch": {"model": "m"}}, {"name": "u", "url": "unix:///x"}]) == []


def test_one_server_twice() -> None:
    again = [*BACKENDS, {"name": "b", "url": "http://127.0.0.1:8081/"}]
    (found,) = advice(Config.model_validate({"backends": again}))
    assert str(found) == "backends[1].url: is the URL of backend a too: one server, counted as two"


def test_required_capture_that_is_off() -> None:
    assert keys(capture={"enabled": False, "required": True}) == ["capture.required"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "LOCALHOST."])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "h"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
