"""What one configuration builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http

from llmtap.assembly import Gateway, backend_of, steps_of
from llmtap.core import config as c
from llmtap.core.config import Config
from llmtap.core.record import End
from llmtap.exchange import Exchange
from llmtap.health import Seen


class Recorder:
    name = "recorder"

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None: ...


def test_order_is_that_of_the_list() -> None:
    class A:
        name = "a"

        def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None: ...

    table = steps_of([("policy", A()), ("observer", Recorder())])
    assert [(s.name, s.kind) for s in table["on_request"]] == [("a", "policy"), ("recorder", "observer")]
    assert table["on_response"] == []


def build(folder: Path, **config: Any) -> Gateway:
    backends = [
        {"name": "a", "url": "https://10.0.0.1", "api_key": "k", "models": ["m"]},
        {"name": "b", "url": "http://[::1]:8081"},
    ]
    return Gateway(Config.model_validate({"backends": backends, "capture": {"dir": str(folder)}, **config}), own_writer=False)


def test_backends_of_the_configuration(tmp_path: Path) -> None:
    gateway = build(tmp_path)
    a, b = gateway.backends
    assert (a.host, a.port, a.tls, a.api_key, a.fixed_models) == ("10.0.0.1", 443, True, "k", ("m",))
    assert (b.host, b.port, b.tls, b.api_key, b.fixed_models) == ("::1", 8081, False, None, None)
    assert gateway.registry.get_sample_value("llmtap_backend_up", {"backend": "a"}) == 0


def test_policy_comes_before_what_watches(tmp_path: Path) -> None:
    steps = build(tmp_path).steps
    assert [s.name for s in steps["on_requestheaders"]] == ["routing"]
    assert [s.name for s in steps["on_request"]] == ["transforms", "routing", "queueing", "capture", "metrics"]
    assert [s.name for s in steps["on_responseheaders"]] == ["queueing", "tee", "capture"]
    assert steps["on_finish"][-1].name == "request_log"
    assert {s.name: s.kind for s in steps["on_request"]}["capture"] == "observer"
    required = build(tmp_path, capture={"dir": str(tmp_path), "required": True}).steps
    assert {s.name: s.kind for s in required["on_request"]}["capture"] == "policy"


def test_what_is_off_is_not_there(tmp_path: Path) -> None:
    gateway = build(tmp_path, capture={"enabled": False}, logging={"request_log": False})
    assert gateway.capture is None and gateway.writer is None
    assert {s.name for steps in gateway.steps.values() for s in steps} == {
        "transforms",
        "routing",
        "queueing",
        "sockets",
        "tee",
        "costs",
        "metrics",
    }


def test_failures_are_counted_and_told_to_the_health(tmp_path: Path) -> None:
    gateway = build(tmp_path)
    gateway.backend_failed("a", "closed")
    assert gateway.backends["a"].state == "unknown"
    gateway.backend_failed("a", "refused")
    assert gateway.backends["a"].state == "failing"
    gateway.backend_failed("port-9000", "refused")  # a port beside the backends
    for name in ("a", "port-9000"):
        labels = {"backend": name, "reason": "refused"}
        assert gateway.registry.get_sample_value("llmtap_backend_failures_total", labels) == 1


def test_state_changes_are_logged_counted_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gateway = build(tmp_path)
    with caplog.at_level("INFO", "llmtap"):
        gateway.backends.set_state("a", "up", "", 0.0)
        gateway.backends.drain("a")
        gateway.backends.set_state("a", "down", "it is gone", 0.0)
    assert [r.getMessage().partition(") ")[2] for r in caplog.records] == ["is up", "is draining", "is draining: it is gone"]
    changes = "llmtap_backend_state_changes_total"
    assert gateway.registry.get_sample_value(changes, {"backend": "a", "state": "up"}) == 1
    assert gateway.registry.get_sample_value(changes, {"backend": "a", "state": "down"}) == 1
    assert gateway.registry.get_sample_value("llmtap_backend_up", {"backend": "a"}) == 0


async def test_backends_come_and_go(tmp_path: Path) -> None:
    gateway = build(tmp_path)
    gateway.add_backend(backend_of(c.Backend(name="c", url="http://127.0.0.1:1", kind="ollama", max_concurrency=3)))
    added = gateway.backends["c"]
    assert (added.kind, added.max_concurrency) == ("ollama", 3) and added in gateway.health._tasks
    assert gateway.remove_backend("c") is added and added not in gateway.health._tasks
    assert gateway.registry.get_sample_value("llmtap_backend_up", {"backend": "c"}) is None
    with pytest.raises(KeyError):
        gateway.remove_backend("c")
    gateway.stop()


def test_a_backend_on_a_socket_that_may_finish(tmp_path: Path) -> None:
    backends = [{"name": "a", "url": "unix:/run/vllm.sock", "on_client_disconnect": "drain"}]
    gateway = build(tmp_path, backends=backends)
    (backend,) = gateway.backends
    assert (backend.uds, backend.drain, backend.url) == ("/run/vllm.sock", True, "unix:///run/vllm.sock")
    gateway.stop()


def test_who_wants_to_know_is_told_of_a_changed_backend(tmp_path: Path) -> None:
    gateway = build(tmp_path)
    told: list[bool] = []
    gateway.health_changed = lambda: told.append(gateway.backends.healthy())
    gateway.health.take(gateway.backends["a"], Seen("up"))
    gateway.health.take(gateway.backends["a"], Seen("up"))
    gateway.health.take(gateway.backends["a"], Seen("down"))
    assert told == [True, False]
    gateway.stop()


async def test_another_configuration_goes_on_with_what_is_the_same(tmp_path: Path) -> None:
    old = build(tmp_path)
    old.start()
    old.health.take(old.backends["a"], Seen("up"))
    old.backends["a"].in_flight = 3
    changed = [{"name": "a", "url": "https://10.0.0.1", "api_key": "k", "models": ["m"]}, {"name": "b", "url": "http://[::1]:9"}]
    config = Config.model_validate({**old.config.model_dump(by_alias=True), "backends": changed})
    new = Gateway(config, own_writer=False, before=old)
    assert new.backends["a"] is old.backends["a"] and new.backends["b"] is not old.backends["b"]
    assert new.capture is old.capture and new.metrics is old.metrics and new.registry is old.registry
    new.start(before=old)
    assert new.shares("a", old) and not new.shares("b", old)
    old.backend_failed("a", "refused")
    assert new.backends["a"].state == "failing"
    assert old.backends.shared is new.backends.shared
    old.stop([new])
    assert new.capture is not None and new.capture.sink.healthy
    assert new.capture.sink.write_end(End("u", 1, "ok"))
    new.stop()
    assert not new.capture.sink.write_end(End("u", 1, "ok"))


async def test_what_is_not_the_same_ends_with_those_who_use_it(tmp_path: Path) -> None:
    old = build(tmp_path)
    old.start()
    elsewhere = {"capture": {"dir": str(tmp_path / "two")}}
    new = Gateway(Config.model_validate({**old.config.model_dump(by_alias=True), **elsewhere}), own_writer=False, before=old)
    assert old.capture is not None and new.capture is not None and new.capture is not old.capture
    new.discard(old)
    assert old.capture.sink.write_end(End("u", 1, "ok")) and not new.capture.sink.write_end(End("u", 1, "ok"))
    new = Gateway(Config.model_validate({**old.config.model_dump(by_alias=True), **elsewhere}), own_writer=False, before=old)
    new.start(before=old)
    assert old.capture.sink.write_end(End("u", 2, "ok"))
    old.stop([new])
    assert new.capture is not None
    assert not old.capture.sink.write_end(End("u", 3, "ok")) and new.capture.sink.write_end(End("u", 3, "ok"))
    new.stop()


async def test_a_backend_that_is_gone_is_in_no_metric(tmp_path: Path) -> None:
    old = build(tmp_path)
    old.start()
    new = Gateway(Config.model_validate({"capture": {"enabled": False}}), own_writer=False, before=old)
    new.start(before=old)
    old.stop([new])
    assert new.registry.get_sample_value("llmtap_backend_up", {"backend": "a"}) is None
    assert new.registry.get_sample_value("llmtap_spool_bytes") == 0
    new.stop()
