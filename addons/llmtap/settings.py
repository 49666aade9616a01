"""mitmproxy options of llmtap, and the configuration they lead to.

    llmtap_config   path of the YAML file (default: $LLMTAP_CONFIG, else ./llmtap.yaml, else built-in defaults)
    llmtap_insecure listen for other machines without keys (as server.insecure)
    llmtap_view_flows  how many finished flows mitmweb and the console keep in their list (0: all)
    llmtap_shared_metrics  the folder where several gateways of one port put their metrics together (the launcher makes it)
    llmtap_launcher the folder with the sockets of the launcher that runs this gateway (the launcher makes it)
    llmtap_writer   whether the gateway starts a writer process of its own (the launcher runs one, and says false)

`--mode reverse:URL` makes that URL the one backend, whatever the file says of backends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mitmproxy import options
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy.mode_specs import ProxyMode

from llmtap.core import config_load
from llmtap.core.config import Config, Routing, Timeouts
from llmtap.core.config_advice import EXPOSED, is_loopback
from llmtap.core.errors import ConfigError

#: the mode mitmproxy has when nobody asked for one
DEFAULT_MODE = ["regular"]


def declare(loader: Loader) -> None:
    """Register the options. Called from `load`."""
    loader.add_option("llmtap_config", str, "", "llmtap: path of the configuration file.")
    loader.add_option("llmtap_insecure", bool, False, "llmtap: listen for other machines although auth is off.")
    loader.add_option("llmtap_view_flows", int, 1000, "llmtap: how many finished flows stay in the list of flows; 0 keeps all.")
    loader.add_option("llmtap_shared_metrics", str, "", "llmtap: folder in which gateways on one port share their metrics.")
    loader.add_option("llmtap_launcher", str, "", "llmtap: folder with the sockets of the launcher that runs this gateway.")
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


def refuse_in_stock_modes(config: Config) -> None:
    """Raises ConfigError for what mitmproxy's own modes cannot do at all."""
    problems = [
        f"backends: {b.name}: a UNIX socket is reached in the gateway mode only; start without --mode"
        for b in config.backends
        if b.url is not None and b.url.startswith("unix:")
    ]
    if config.server.tls_cert is not None:
        problems.append(
            "server.tls_cert: serves the gateway mode only; give mitmproxy's own modes --certs, or start without --mode"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def unused_in_stock_modes(config: Config) -> Iterator[str]:
    """Keys that are set and have no effect there: mitmproxy goes on without them."""
    if config.timeouts != Timeouts():
        yield "timeouts"
    if config.routing.retries != Routing().retries:
        yield "routing.retries"
    if config.server.compat_port is not None:
        yield "server.compat_port"
    if any(b.on_client_disconnect != "abort" for b in config.backends):
        yield "backends.on_client_disconnect"


def refuse_disarming(old: Config, new: Config) -> None:
    """Raises ConfigError when `new` would turn a protection off: a file that is half written must not open the gateway."""
    for section in ("auth", "rate_limit"):
        if getattr(old, section).enabled and not getattr(new, section).enabled:
            raise ConfigError(f"{section}.enabled: cannot be turned off while the gateway runs; restart it")


def needs_restart(old: Config, new: Config) -> Iterator[str]:
    """Keys that have changed and that a running gateway cannot follow (or that are the launcher's)."""
    for key, differs in {
        "server.workers": old.server.workers != new.server.workers,
        "server.web": old.server.web != new.server.web,
        "metrics.max_model_len": old.metrics.max_model_len != new.metrics.max_model_len,
        "metrics.vllm_names": old.metrics.vllm_names != new.metrics.vllm_names,
        "metrics.engine_label": old.metrics.engine_label != new.metrics.engine_label,
        "datasette": old.datasette != new.datasette,
    }.items():
        if differs:
            yield key


def environment() -> dict[str, str]:
    return dict(os.environ)


__all__ = [
    "DEFAULT_MODE",
    "ConfigError",
    "check_exposure",
    "config_path",
    "declare",
    "environment",
    "load_config",
    "needs_restart",
    "refuse_disarming",
    "refuse_in_stock_modes",
    "reverse_target",
    "unused_in_stock_modes",
]
