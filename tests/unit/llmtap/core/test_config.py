"""The models: defaults as promised, immutability, checks over several keys, and the ready-made configurations."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmtap.core.config import Backend, Config, Key, Launch, Price
from llmtap.core.config_problems import keys_of
from llmtap.core.config_types import Section
from llmtap.core.errors import ConfigError

#: the defaults users were promised
PROMISED: dict[str, Any] = {
    "server": {
        "host": "127.0.0.1",
        "port": 8000,
        "compat_port": None,
        "tls_cert": None,
        "tls_key": None,
        "workers": 1,
        "web": False,
        "max_body_mb": 64,
        "drain_timeout_s": 30,
        "cors_origins": (),
        "insecure": False,
    },
    "backends": (),
    "routing": {
        "policy": "least_connections",
        "aliases": {},
        "fallbacks": {},
        "retries": 2,
        "direct_ports": (),
        "allow_paths": (),
        "health_interval_s": 5,
    },
    "timeouts": {"connect_s": 5, "first_byte_s": 600, "idle_s": 600, "total_s": 3600},
    "queue": {"max_concurrency": None, "max_waiting": 1000, "timeout_s": 60},
    "auth": {"enabled": False, "keys": (), "exempt_paths": ("/health", "/internal/healthz")},
    "management": {"enabled": True, "keys": ()},
    "rate_limit": {
        "enabled": False,
        "default_limit": 60,
        "window_seconds": 60,
        "tokens_per_minute": None,
        "models": (),
        "storage": "memory://",
        "on_storage_error": "deny",
    },
    "cache": {
        "enabled": False,
        "max_entries": 1000,
        "max_mb": 256,
        "ttl_s": 3600,
        "scope": "key",
        "only_deterministic": True,
        "replay": "instant",
        "storage": "memory://",
    },
    "single_flight": {"enabled": False, "scope": "key", "only_deterministic": False},
    "batching": {"enabled": False, "max_batch_size": 8, "max_wait_ms": 50, "chat": False},
    "filters": (),
    "capture": {
        "enabled": True,
        "dir": Path("llmtap-data"),
        "segment_mb": 100,
        "timings": True,
        "required": False,
        "max_spool_gb": 10,
        "sample": 1,
        "max_body_kb": 0,
        "opt_out": True,
        "rules": (),
    },
    "store": {
        "path": None,
        "retain_days": 30,
        "retain_bodies_days": 30,
        "retain_timings_days": 30,
        "max_gb": 50,
        "archive_days": 3,
    },
    "datasette": {"enabled": True, "host": "127.0.0.1", "port": 8001, "password": None},
    "metrics": {"enabled": True, "vllm_names": False, "engine_label": "proxy", "max_model_len": 32768},
    "logging": {"level": "INFO", "json": True, "request_log": True, "prompts": False},
    "prices": (),
}


def wrong(**sections: Any) -> dict[str, Any]:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(sections)
    (error,) = caught.value.errors()
    return {"loc": error["loc"], "at": error.get("ctx", {}).get("at"), "msg": error["msg"]}


def test_defaults_are_the_promised_ones() -> None:
    assert Config().model_dump(by_alias=True) == PROMISED


def test_defaults_of_a_backend() -> None:
    backend = Backend.model_validate({"name": "a", "launch": {"model": "m"}})
    assert backend.model_dump() == {
        "name": "a",
        "url": None,
        "kind": "openai",
        "models": None,
        "api_key": None,
        "max_concurrency": 256,
        "on_client_disconnect": "abort",
        "launch": {
            "engine": "vllm",
            "model": "m",
            "args": {},
            "env": {},
            "command": None,
            "venv": None,
            "startup_timeout_s": 900,
            "ttl_s": None,
            "group": None,
        },
    }


def test_defaults_of_a_key() -> None:
    key = Key.model_validate({"name": "k", "key_sha256": "0" * 64})
    assert key.model_dump(exclude={"name", "key_sha256"}) == {
        "rate_limit": None,
        "tokens_per_minute": None,
        "models": None,
        "budget_usd": None,
        "budget_period": "month",
        "max_concurrency": None,
        "expires": None,
        "key": None,
        "priority": 0,
    }


def test_a_key_is_given_once_and_belongs_to_one() -> None:
    def wrong(*keys: dict[str, str]) -> str:
        with pytest.raises(ValidationError) as caught:
            Config.model_validate({"auth": {"keys": keys}})
        return caught.value.errors()[0]["msg"]

    assert "has no key_sha256" in wrong({"name": "a"})
    assert "is given besides key_sha256" in wrong({"name": "a", "key": "x", "key_sha256": "0" * 64})
    digest = sha256(b"same").hexdigest()
    assert "is the key of another one already" in wrong({"name": "a", "key": "same"}, {"name": "b", "key_sha256": digest})
    assert "same" not in repr(Key.model_validate({"name": "a", "key": "same"}))


@pytest.mark.parametrize("origin", ["*", "https://app.example.org", "http://localhost:3000"])
def test_web_origins(origin: str) -> None:
    assert Config.model_validate({"server": {"cors_origins": [origin]}}).server.cors_origins == (origin,)


@pytest.mark.parametrize("origin", ["", "app.example.org", "https://a/", "https://a/b", "ftp://a", "null", "https://u:p@a"])
def test_what_is_no_web_origin(origin: str) -> None:
    with pytest.raises(ValidationError, match="as browsers send it"):
        Config.model_validate({"server": {"cors_origins": [origin]}})


def sections(model: type[Section] = Config) -> list[type[Section]]:
    found = [model]
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                found += sections(kind)
    return found


@pytest.mark.parametrize("model", sections(), ids=lambda m: m.__name__)
def test_every_key_is_described_and_nothing_can_be_changed(model: type[Section]) -> None:
    assert {n for n, f in model.model_fields.items() if not f.description} == set()
    assert model.model_config["frozen"] and model.model_config["extra"] == "forbid"
    assert model.__doc__


def test_all_sections_were_looked_at() -> None:
    assert {Config, Backend, Launch, Key, Price} <= set(sections())
    assert list(keys_of(Config)) == list(PROMISED)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().server.port = 1  # type: ignore[misc]


def test_defaults_are_valid_values() -> None:
    assert Config.model_validate(Config().model_dump(by_alias=True)) == Config()


def test_a_backend_needs_a_url_or_a_process() -> None:
    error = wrong(backends=[{"name": "a"}])
    assert error["loc"] == ("backends", 0) and "neither url nor launch" in error["msg"]


def test_a_launched_backend_listens_on_plain_http() -> None:
    for url in ("https://h:1", "unix:///x"):
        error = wrong(backends=[{"name": "a", "url": url, "launch": {"model": "m"}}])
        assert error["at"] == ("url",)


def test_names_are_unique() -> None:
    error = wrong(backends=[{"name": "a", "url": "http://h:1"}, {"name": "a", "url": "http://h:2"}])
    assert error["at"] == ("backends", 1, "name") and "unique" in error["msg"]
    key = {"name": "k", "key_sha256": "0" * 64}
    assert wrong(auth={"keys": [key, key]})["at"] == ("auth", "keys", 1, "name")


def test_ports_do_not_collide() -> None:
    assert wrong(datasette={"port": 8000})["at"] == ("datasette", "port")
    assert wrong(server={"compat_port": 8000})["at"] == ("server", "compat_port")
    assert wrong(server={"compat_port": 8001})["at"] == ("datasette", "port")
    # not the same: other host, not started, or any free port
    for datasette in ({"port": 8000, "host": "::1"}, {"port": 8000, "enabled": False}):
        Config.model_validate({"datasette": datasette})
    Config.model_validate({"server": {"port": 0}, "datasette": {"port": 0}})


def test_a_price_has_rates() -> None:
    assert "no price" in wrong(prices=[{"model": "m", "input_usd_per_million": 1}])["msg"]
    config = Config.model_validate({"prices": [{"model": "m", "gpu_hour_usd": 2, "valid_from": "2026-01-31"}]})
    assert config.prices[0].gpu_hour_usd == 2


def test_log_level_in_any_case() -> None:
    config = Config.model_validate({"logging": {"level": "debug", "json": False}})
    assert config.logging.level == "DEBUG" and config.logging.json_format is False


def test_folders() -> None:
    config = Config.model_validate({"capture": {"dir": "/data"}})
    assert (config.spool_dir, config.db_path) == (Path("/data/spool"), Path("/data/capture.db"))
    config = Config.model_validate({"capture": {"dir": "/data"}, "store": {"path": "/fast/x.db"}})
    assert (config.spool_dir, config.db_path) == (Path("/data/spool"), Path("/fast/x.db"))


def test_command_words() -> None:
    assert Launch.model_validate({"model": "m"}).command_words is None
    assert Launch.model_validate({"model": "m", "command": "python -m 'a b'"}).command_words == ("python", "-m", "a b")


def test_reverse_target() -> None:
    config = Config.for_reverse_target("http://127.0.0.1:8081/")
    assert [(b.name, b.url) for b in config.backends] == [("127.0.0.1:8081", "http://127.0.0.1:8081")]
    assert config.model_copy(update={"backends": ()}) == Config()
    assert Config.for_reverse_target("http://[::1]:1").backends[0].name == "::1:1"


@pytest.mark.parametrize("url", ["http://h/v1", "h:1", "http://" + "x" * 80 + ":1"])
def test_wrong_reverse_target(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^backend URL: "):
        Config.for_reverse_target(url)


def test_urls_of_the_command_line_keep_the_rest() -> None:
    base = Config.model_validate({"server": {"port": 9000}, "backends": [{"name": "a", "url": "http://h:1"}]})
    config = base.with_urls(["http://h:2", "http://h:3"])
    assert config.server.port == 9000 and [b.name for b in config.backends] == ["h:2", "h:3"]
    with pytest.raises(ConfigError, match="h:2 is given twice"):
        base.with_urls(["http://h:2", "http://h:2/"])


def test_dry_run() -> None:
    config = Config.dry_run()
    assert [b.name for b in config.backends] == ["a", "b"]
    assert {(b.launch.engine, b.launch.model, b.url) for b in config.backends if b.launch} == {("sim", "sim-small", None)}
    assert Config.dry_run("other").backends[0].launch == Launch(engine="sim", model="other")


def test_secrets_do_not_show() -> None:
    config = Config.model_validate(
        {
            "backends": [{"name": "a", "api_key": "sk-hidden", "launch": {"model": "m", "env": {"HF_TOKEN": "hf-hidden"}}}],
            "auth": {"keys": [{"name": "k", "key_sha256": "ab" * 32}]},
            "rate_limit": {"storage": "redis://:pw-hidden@h"},
        }
    )
    shown = repr(config) + str(config)
    assert "hidden" not in shown and "ab" * 32 not in shown
    assert "sk-hidden" not in str(config.model_dump())
    assert config.backends[0].api_key is not None
    assert config.backends[0].api_key.get_secret_value() == "sk-hidden"


def test_tls_of_the_listener() -> None:
    assert Config().server.scheme == "http"
    assert Config.model_validate({"server": {"tls_cert": "c.pem"}}).server.scheme == "https"
    assert wrong(server={"tls_key": "k.pem"})["at"] == ("tls_key",)
