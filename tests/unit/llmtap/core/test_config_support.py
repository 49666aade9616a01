"""The table of what is not built: everything in it is refused, everything else works, and the table itself is right."""

from __future__ import annotations

from typing import Any

import pytest

from llmtap import __version__
from llmtap.core.config import Config
from llmtap.core.config_problems import all_keys, dotted
from llmtap.core.config_support import NOT_YET, Except, entry_for, not_yet

BACKEND = {"name": "a", "url": "http://h:1"}


def refused(table: dict[str, Any] | None = None, **sections: Any) -> dict[str, str]:
    return {dotted(r.path): r.message for r in not_yet(Config.model_validate(sections), table)}


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("backends[0].kind", {"backends": [{**BACKEND, "kind": "ollama"}]}),
        ("backends[0].max_concurrency", {"backends": [{**BACKEND, "max_concurrency": 8}]}),
        ("routing.policy", {"routing": {"policy": "p2c"}}),
        ("routing.policy", {"routing": {"policy": "prefix_hash"}}),
        ("routing.aliases", {"routing": {"aliases": {"a": "b"}}}),
        ("routing.fallbacks", {"routing": {"fallbacks": {"a": ["b"]}}}),
        ("routing.retries", {"routing": {"retries": 0}}),
        ("routing.direct_ports", {"routing": {"direct_ports": [5000]}}),
        ("timeouts.idle_s", {"timeouts": {"idle_s": 1}}),
        ("queue.max_waiting", {"queue": {"max_waiting": 1}}),
        ("auth.enabled", {"auth": {"enabled": True}}),
        ("auth.keys", {"auth": {"keys": [{"name": "k", "key_sha256": "0" * 64}]}}),
        ("rate_limit.enabled", {"rate_limit": {"enabled": True}}),
        ("cache.enabled", {"cache": {"enabled": True}}),
        ("single_flight.enabled", {"single_flight": {"enabled": True}}),
        ("batching.enabled", {"batching": {"enabled": True}}),
        ("store.retain_days", {"store": {"retain_days": 1}}),
        ("store.retain_bodies_days", {"store": {"retain_bodies_days": 1}}),
        ("store.max_gb", {"store": {"max_gb": 1}}),
        ("metrics.vllm_names", {"metrics": {"vllm_names": True}}),
        ("metrics.engine_label", {"metrics": {"engine_label": "x"}}),
        ("metrics.max_model_len", {"metrics": {"max_model_len": 1}}),
        ("prices", {"prices": [{"model": "m", "gpu_hour_usd": 1}]}),
    ],
)
def test_not_built_is_refused(key: str, sections: dict[str, Any]) -> None:
    found = refused(**sections)
    if any(entry_for(part) is not None for part in _patterns(key)):
        assert set(found) == {key}
        assert f"not available yet (llmtap {__version__})" in found[key]
    else:  # built meanwhile: its entry is gone
        assert found == {}


def _patterns(key: str) -> list[str]:
    return [key.replace("[0]", ".*")]


def test_what_is_built_works() -> None:
    assert (
        refused(
            server={"host": "0.0.0.0", "port": 1, "web": True, "max_body_mb": 1, "drain_timeout_s": 0},
            backends=[
                {**BACKEND, "models": ["m"], "api_key": "k"},
                {"name": "b", "launch": {"engine": "sim", "model": "m", "args": {"x": 1}, "env": {"A": "b"}}},
                {"name": "c", "launch": {"model": "m", "command": "c", "venv": "v", "startup_timeout_s": 1}},
            ],
            routing={"policy": "prefix_hash", "allow_paths": ["/x"], "health_interval_s": 1, "aliases": {"a": "b"}},
            queue={"max_concurrency": 1, "max_waiting": 0, "timeout_s": 1},
            capture={"enabled": False, "dir": "x", "segment_mb": 1, "timings": False, "required": True, "max_spool_gb": 1},
            store={"path": "x"},
            datasette={"enabled": False, "host": "::1", "port": 1},
            metrics={"enabled": False},
            logging={"level": "ERROR", "json": False, "request_log": False},
        )
        == {}
    )


def test_defaults_written_out_are_no_request() -> None:
    tree = Config().model_dump(by_alias=True) | {"backends": [{**BACKEND, "kind": "openai", "max_concurrency": 256}]}
    assert list(not_yet(Config.model_validate(tree))) == []


def test_messages_say_what_to_do() -> None:
    release = f"not available yet (llmtap {__version__})"
    table = {
        "queue.max_waiting": (),
        "routing.policy": ("round_robin",),
        "routing.aliases": (),
        "server.compat_port": (),
        "server.web": (),
        "backends.*.url": Except("UNIX sockets", lambda url: url.startswith("unix:")),
    }
    found = refused(
        table,
        server={"compat_port": 5, "web": True},
        queue={"max_waiting": 2},
        routing={"policy": "p2c", "aliases": {"a": "b"}},
        backends=[BACKEND, {"name": "b", "url": "unix:///x"}],
    )
    assert found == {
        "queue.max_waiting": f"{release}; remove it or leave the default 1000",
        "server.compat_port": f"{release}; remove it",
        "server.web": f"{release}; remove it or leave the default false",
        "routing.policy": f"{release}; remove it or leave the default least_connections, or use round_robin",
        "routing.aliases": f"{release}; remove it or leave it empty",
        "backends[1].url": f"UNIX sockets are {release}; use something else",
    }


def test_removing_an_entry_makes_the_feature_available() -> None:
    table = {key: works for key, works in NOT_YET.items() if key != "auth"}
    sections = {"auth": {"enabled": True}, "server": {"workers": 2}}
    assert set(refused({"auth": (), **table}, **sections)) - set(refused(table, **sections)) == {"auth.enabled"}


def test_the_table_names_keys_that_exist() -> None:
    known = {key.replace("[]", ".*") for key in all_keys(Config)}
    assert set(NOT_YET) <= known


def test_an_entry_covers_what_is_below_it() -> None:
    table: dict[str, Any] = {"auth": (), "server.port": (1,)}
    assert entry_for("auth.keys.*.name", table) == ()
    assert entry_for("server.port", table) == (1,)
    assert entry_for("server", table) is None
    assert entry_for("authority", table) is None
