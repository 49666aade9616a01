"""Options and configuration of the script."""

from __future__ import annotations

from pathlib import Path

import pytest
from mitmproxy import options
from mitmproxy.addonmanager import Loader
from mitmproxy.test import taddons

import llmtap.lane  # noqa: F401 - registers the mode `gateway`
from llmtap import settings
from llmtap.core.config import Config
from llmtap.core.errors import ConfigError


@pytest.mark.parametrize(
    ("mode", "url"),
    [
        (["reverse:http://127.0.0.1:8081"], "http://127.0.0.1:8081"),
        (["reverse:http://127.0.0.1:8081/"], "http://127.0.0.1:8081"),
        (["reverse:https://h:1@127.0.0.1:9000"], "https://h:1"),
        (["reverse:127.0.0.1:8081"], "http://127.0.0.1:8081"),
        (["regular"], None),
        (["socks5", "reverse:http://h:2"], "http://h:2"),
    ],
)
def test_reverse_target(mode: list[str], url: str | None) -> None:
    assert settings.reverse_target(mode) == url


@pytest.fixture
async def opts() -> options.Options:
    # a fixture on the loop: mitmproxy's master would make, and never close, one of its own
    with taddons.context() as context:
        settings.declare(Loader(context.master))
        return context.master.options


async def test_the_reverse_target_is_the_one_backend(opts: options.Options, tmp_path: Path) -> None:
    file = tmp_path / "llmtap.yaml"
    file.write_text("backends: [{name: other, url: 'http://10.0.0.1:1'}]\nserver: {port: 9999}\n")
    opts.update(llmtap_config=str(file))
    assert [b.name for b in settings.load_config(opts, {}, tmp_path).backends] == ["other"]
    opts.update(mode=["reverse:http://127.0.0.1:8081"])
    config = settings.load_config(opts, {}, tmp_path)
    assert [b.url for b in config.backends] == ["http://127.0.0.1:8081"] and config.server.port == 9999


async def test_no_file_is_no_error(opts: options.Options, tmp_path: Path) -> None:
    assert settings.load_config(opts, {}, tmp_path).server.port == 8000


async def test_a_file_that_is_named_must_exist(opts: options.Options, tmp_path: Path) -> None:
    opts.update(llmtap_config=str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError) as caught:
        settings.load_config(opts, {}, tmp_path)
    assert "missing.yaml" in str(caught.value)


def test_environment_is_a_copy() -> None:
    env = settings.environment()
    env["LLMTAP_TEST_ONLY"] = "1"
    assert "LLMTAP_TEST_ONLY" not in settings.environment()


@pytest.mark.parametrize("mode", ["regular", "gateway:http://127.0.0.1:1@0.0.0.0:1", "reverse:http://h:1@10.0.0.1:1"])
async def test_an_open_gateway_needs_keys_or_insistence(opts: options.Options, mode: str) -> None:
    opts.update(mode=[mode])
    config = Config.model_validate({"server": {"host": "0.0.0.0"}})
    with pytest.raises(ConfigError, match="is reachable from other machines"):
        settings.check_exposure(opts, config)
    settings.check_exposure(opts, Config.model_validate({"server": {"host": "0.0.0.0"}, "auth": {"enabled": True}}))
    settings.check_exposure(opts, Config.model_validate({"server": {"host": "0.0.0.0", "insecure": True}}))
    opts.update(llmtap_insecure=True)
    settings.check_exposure(opts, config)


async def test_the_listening_address_of_mitmproxys_own_option_counts(opts: options.Options) -> None:
    settings.check_exposure(opts, Config())
    opts.update(listen_host="::")
    with pytest.raises(ConfigError, match=":: is reachable"):
        settings.check_exposure(opts, Config())


def test_what_stock_modes_cannot_do() -> None:
    settings.refuse_in_stock_modes(Config())
    config = Config.model_validate(
        {"backends": [{"name": "a", "url": "unix:///x"}, {"name": "b", "url": "http://h"}], "server": {"tls_cert": "c"}}
    )
    with pytest.raises(ConfigError) as caught:
        settings.refuse_in_stock_modes(config)
    unix, tls = str(caught.value).splitlines()
    assert unix.startswith("backends: a:") and "--mode" in unix and tls.startswith("server.tls_cert:")


def test_what_stock_modes_leave_out() -> None:
    assert list(settings.unused_in_stock_modes(Config())) == []
    config = Config.model_validate(
        {
            "server": {"compat_port": 5000},
            "timeouts": {"idle_s": 1},
            "routing": {"retries": 0},
            "backends": [{"name": "a", "url": "http://h", "on_client_disconnect": "drain"}],
        }
    )
    unused = ["timeouts", "routing.retries", "server.compat_port", "backends.on_client_disconnect"]
    assert list(settings.unused_in_stock_modes(config)) == unused


def test_what_takes_a_restart() -> None:
    old = Config()
    assert list(settings.needs_restart(old, Config.model_validate({"routing": {"retries": 1}, "server": {"port": 1}}))) == []
    metrics = {"max_model_len": 5, "vllm_names": True, "engine_label": "0"}
    new = Config.model_validate({"server": {"workers": 1, "web": True}, "metrics": metrics, "datasette": {"enabled": False}})
    assert list(settings.needs_restart(Config.model_validate({"server": {"workers": 2}}), new)) == [
        "server.workers",
        "server.web",
        "metrics.max_model_len",
        "metrics.vllm_names",
        "metrics.engine_label",
        "datasette",
    ]
