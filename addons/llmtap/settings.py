"""mitmproxy options of llmtap, and the configuration they lead to.

    llmtap_config   path of the YAML file (default: $LLMTAP_CONFIG, else ./llmtap.yaml, else built-in defaults)
    llmtap_insecure listen for other machines without keys (as server.insecure)
    llmtap_view_flows  how many finished flows mitmweb and the console keep in their list (0: all)
    llmtap_writer   whether the gateway starts a writer process of its own (the launcher runs one, and says false)

`--mode reverse:URL` makes that URL the one backend, whatever the file says of backends.
"""

from __future__ import annotations

import os
from pathlib import Path

from mitmproxy import options
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy.mode_specs import ProxyMode

from llmtap.core import config_load
from llmtap.core.config import Config
from llmtap.core.config_advice import EXPOSED, is_loopback
from llmtap.core.errors import ConfigError

#: the mode mitmproxy has when nobody asked for one
DEFAULT_MODE = ["regular"]


def declare(loader: Loader) -> None:
    """Register the options. Called from `load`."""
    loader.add_option("llmtap_config", str, "", "llmtap: path of the configuration file.")
    loader.add_option("llmtap_insecure", bool, False, "llmtap: listen for other machines although auth is off.")
    loader.add_option("llmtap_view_flows", int, 1000, "llmtap: how many finished flows stay in the list of flows; 0 keeps all.")
    loader.add_option("llmtap_writer", bool, True, "llmtap: start the process that writes captures into SQLite.")


def reverse_target(modes: list[str]) -> str | None:
    """The URL of a `reverse:URL` mode, without the listening address, or None."""
    for mode in modes:
        kind, _, rest = mode.partition(":")
        if kind == "reverse":
            url = rest.rpartition("@")[0] if "@" in rest else rest
            if "://" not in url:
                url = "http://" + url
            return url.rstrip("/")
    return None


def config_path(opts: options.Options, env: dict[str, str], cwd: Path) -> Path | None:
    """The configuration file in force, or None for the built-in defaults."""
    explicit = Path(opts.llmtap_config).expanduser() if opts.llmtap_config else None
    return config_load.resolve_path(explicit, env, cwd)


def check_exposure(opts: options.Options, config: Config) -> None:
    """Raises ConfigError when other machines could use the backends without a key, and nobody has said that they may."""
    if config.auth.enabled or config.server.insecure or opts.llmtap_insecure:
        return
    for mode in opts.mode:
        host = ProxyMode.parse(mode).custom_listen_host or opts.listen_host or config.server.host
        if not is_loopback(host):
            raise ConfigError(EXPOSED.format(host=host).replace("--insecure", "--set llmtap_insecure=true"))


def load_config(opts: options.Options, env: dict[str, str], cwd: Path) -> Config:
    """The configuration in force. Raises ConfigError (one line a problem)."""
    config = config_load.load(config_path(opts, env, cwd), env, {})
    target = reverse_target(list(opts.mode))
    return config if target is None else config.with_urls([target])


def environment() -> dict[str, str]:
    return dict(os.environ)


__all__ = ["DEFAULT_MODE", "ConfigError", "declare", "environment", "load_config", "reverse_target"]
