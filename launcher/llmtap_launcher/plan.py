"""From a configuration to a Plan: which processes `llmtap up` runs, with ports chosen and command lines made."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from llmtap.core.config import Backend, Config, Launch
from llmtap.core.errors import ConfigError

from . import vllm
from .datasette import command as datasette
from .gateway import LISTENS, WEB_PORT, child_env, foreign_env, gateway_argv
from .health import http_ready, line_ready, reachable
from .ports import free_ports
from .process import Probe, Spec, Started, port_taken
from .restart import RestartPolicy
from .runtime import RunFolder, write_private
from .script_path import script_path
from .settle import settled
from .store.status import read_status
from .supervisor import Plan
from .vllm import has_flag, knows_flag, served_names, sim_argv, vllm_argv, vllm_command, vllm_env

#: name of the file the gateway reads, in the run's folder
EFFECTIVE = "gateway.yaml"
#: the writer's last pass, Datasette's open requests
WRITER_GRACE_S, DATASETTE_GRACE_S = 30.0, 5.0
#: what the gateway needs beyond its draining to shut down
GATEWAY_EXTRA_S = 5.0
#: the same for an engine
ENGINE_EXTRA_S = 15.0


@dataclass(frozen=True, slots=True)
class Setup:
    """A configuration with every port decided. `web_port`: mitmweb's, None when it does not run."""

    config: Config
    web_port: int | None

    @property
    def url(self) -> str:
        """The gateway's address for clients on this machine."""
        server = self.config.server
        return f"{server.scheme}://{reachable(server.host)}:{server.port}"

    @property
    def datasette_url(self) -> str | None:
        """The page over the captures."""
        page = self.config.datasette
        return f"http://{reachable(page.host)}:{page.port}" if page.enabled else None


def decide(config: Config) -> Setup:
    """Fill in what may be left open: ports given as 0, URLs of launched backends, mitmweb's port; make paths absolute."""
    urls = [backend.url for backend in config.backends if backend.url is not None]
    taken = {port for url in urls if (port := urlsplit(url).port) is not None} | {config.server.port, config.datasette.port}
    web_port = WEB_PORT if WEB_PORT not in taken and not port_taken("127.0.0.1", WEB_PORT) else 0
    missing = [backend for backend in config.backends if backend.url is None]
    fresh = iter(free_ports(len(missing) + 3, avoid=taken | {WEB_PORT}))
    backends = tuple(settled(backend, lambda: next(fresh)) for backend in config.backends)
    files = {"tls_cert": config.server.tls_cert, "tls_key": config.server.tls_key}
    tls = {name: path.absolute() for name, path in files.items() if path is not None}
    updates: dict[str, Any] = {
        "server": config.server.model_copy(update={"port": config.server.port or next(fresh), **tls}),
        "datasette": config.datasette.model_copy(update={"port": config.datasette.port or next(fresh)}),
        "capture": config.capture.model_copy(update={"dir": config.capture.dir.absolute()}),
        "backends": backends,
    }
    if config.store.path is not None:
        updates["store"] = config.store.model_copy(update={"path": config.store.path.absolute()})
    return Setup(config.model_copy(update=updates), (web_port or next(fresh)) if config.server.web else None)


def plain(value: Any) -> Any:
    """Configuration values as JSON has them, secrets in clear: for the private file only."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, BaseModel):
        return plain(value.model_dump(exclude_defaults=True, by_alias=True))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def write_effective(config: Config, path: Path) -> None:
    """Write the configuration in force, as JSON (which is YAML), readable by its owner only. Defaults are left out.

    How backends are launched is nobody's business but the launcher's (their environments may hold secrets): only URLs are kept.
    Several workers cannot count together, so each gets its part of what may be at a backend and in the queue at once.
    """
    n = config.server.workers
    backends = tuple(
        backend.model_copy(update={"launch": None, "max_concurrency": part(backend.max_concurrency, n)})
        for backend in config.backends
    )
    queue = {"max_concurrency": part(config.queue.max_concurrency, n), "max_waiting": part(config.queue.max_waiting, n)}
    config = config.model_copy(update={"backends": backends, "queue": config.queue.model_copy(update=queue)})
    write_private(path, json.dumps(plain(config), indent=1, ensure_ascii=False) + "\n")


def part(limit: int | None, workers: int) -> int | None:
    """What each of so many workers may have of a limit: rounded up, so none is left with nothing."""
    return None if limit is None else -(-limit // workers)


def make_plan(setup: Setup, folder: RunFolder, run: str, env: Mapping[str, str]) -> Plan:
    """The processes of this configuration. Writes the file the gateway reads, so the folder must be held.

    Raises ConfigError when the only backend cannot be started; one of several is left out and told.
    """
    config = setup.config
    effective = folder.path / EFFECTIVE
    write_effective(config, effective)
    launched = [(backend, backend.launch) for backend in config.backends if backend.launch is not None]
    alone, drain_s = len(config.backends) == 1, config.server.drain_timeout_s
    backends = tuple(backend_spec(backend, launch, run, env, drain_s, alone=alone) for backend, launch in launched)
    own = child_env(run, env)
    gateway = Spec(
        "gateway",
        gateway_argv(script_path(), effective, folder.path / "mitmproxy", web_port=setup.web_port, sockets=folder.sockets),
        env=own,
        ready=http_ready(f"{setup.url}/health"),
        grace_s=config.server.drain_timeout_s + GATEWAY_EXTRA_S,
        listens=(config.server.host, config.server.port),
        port_hint="choose another with --port",
        # a gateway that does not come up at first is a mistake to be told, not a crash to be retried
        policy=RestartPolicy(startup_limit=1),
    )
    return Plan(
        (gateway,) if config.server.workers == 1 else _workers(gateway, config.server.workers, effective, folder),
        backends=backends,
        writer=_writer(config, effective, own) if config.capture.enabled else None,
        datasette=_datasette(setup, own) if config.datasette.enabled and config.capture.enabled else None,
        slow=frozenset(backend.name for backend, launch in launched if launch.engine != "sim"),
        lazy=frozenset(lazy(launched)),
        facts={**facts(setup), "sockets": str(folder.sockets)},
    )


def lazy(launched: Iterable[tuple[Backend, Launch]]) -> Iterator[str]:
    """Names of the backends that wait for a request: all of a group but its first."""
    groups: set[str] = set()
    for backend, launch in launched:
        if launch.group is not None:
            if launch.group in groups:
                yield backend.name
            groups.add(launch.group)


def _workers(gateway: Spec, count: int, effective: Path, folder: RunFolder) -> tuple[Spec, ...]:
    """The same gateway several times on one port. Each says itself when it listens: on the port another might answer."""
    metrics = folder.fresh("metrics")
    argv = gateway_argv(script_path(), effective, folder.path / "mitmproxy", shared_metrics=metrics, sockets=folder.sockets)
    # `listens` would find the port taken by its siblings; `llmtap up` has looked before it starts anything
    worker = replace(gateway, argv=argv, ready=line_ready(LISTENS), listens=None)
    return tuple(replace(worker, name=f"gateway-{number}") for number in range(1, count + 1))


def facts(setup: Setup) -> dict[str, Any]:
    """What `state.json` says beyond the processes: URLs, folders, backends."""
    config = setup.config
    return {
        "urls": {
            "gateway": setup.url,
            "openai": f"{setup.url}/v1",
            "metrics": f"{setup.url}/metrics" if config.metrics.enabled else None,
            "stats": f"{setup.url}/stats" if config.metrics.enabled else None,
            "datasette": setup.datasette_url if config.capture.enabled else None,
        },
        "data": str(config.capture.dir),
        "database": str(config.db_path),
        "backends": backend_facts(config),
    }


def backend_facts(config: Config) -> list[dict[str, Any]]:
    """What it says of each backend."""
    return [
        {
            "name": backend.name,
            "url": backend.url,
            "kind": backend.kind,
            "engine": backend.launch.engine if backend.launch is not None else None,
            "model": served_name(backend.launch) if backend.launch is not None else None,
        }
        for backend in config.backends
    ]


def served_name(launch: Launch) -> str:
    """The name clients use for the model: the first of `served-model-name`, if that is set."""
    return served_names(launch)[0]


def backend_spec(
    backend: Backend,
    launch: Launch,
    run: str,
    env: Mapping[str, str],
    drain_s: float,
    *,
    alone: bool = True,
    tries: int = 3,
) -> Spec:
    """The process of a backend. `drain_s`: how long its streams may go on when it is stopped; `tries`: starts without success.

    Raises ConfigError when its command is not there, unless it is not `alone`: then the spec says so.
    """
    parts = urlsplit(backend.url or "")
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    base = Spec(
        backend.name,
        (),
        ready=http_ready(f"http://{reachable(host)}:{port}/health"),
        startup_timeout_s=launch.startup_timeout_s,
        listens=(host, port),
        port_hint="set another url for the backend",
        policy=RestartPolicy(startup_limit=tries),
    )
    if launch.engine == "sim":
        argv = sim_argv(launch.model, host, port, launch.args)
        return replace(base, argv=argv, env={**child_env(run, env), **launch.env}, grace_s=5.0)
    slow = replace(base, probe_interval_s=0.5, grace_s=drain_s + ENGINE_EXTRA_S)
    try:
        command = vllm_command(launch.command_words, launch.venv, env)
    except ConfigError as error:
        if alone:
            raise
        return replace(slow, broken=str(error))
    drains = drain_s if knows_flag(command, "shutdown-timeout") else None
    more = {"VLLM_SERVER_DEV_MODE": "1"} if launch.on_demand and has_flag(launch.args, "enable-sleep-mode") else {}
    key = backend.api_key.get_secret_value() if backend.api_key is not None else None
    return replace(
        slow,
        argv=vllm_argv(command, launch.model, host, port, launch.args, drains),
        env=vllm_env(foreign_env(run, env), {**more, **launch.env}, command, key),
        missing_hint=vllm.INSTALL_HINT,
    )


def _writer(config: Config, effective: Path, env: Mapping[str, str]) -> Spec:
    argv = [
        sys.executable,
        "-P",
        "-m",
        "llmtap_launcher",
        "ingest",
        "--follow",
        "--parent-pipe",
        "--config",
        str(effective),
        "--dir",
        str(config.capture.dir),
    ]
    if config.store.path is not None:
        argv += ["--db", str(config.store.path)]
    return Spec("writer", argv, env=env, ready=writer_ready(config.capture.dir), grace_s=WRITER_GRACE_S, stdin_pipe=True)


def writer_ready(capture_dir: Path) -> Probe:
    """Ready when the status file is this very writer's."""

    async def probe(started: Started) -> bool:
        status = read_status(capture_dir)
        return status is not None and status.pid == started.pid and status.state == "running"

    return probe


def _datasette(setup: Setup, env: Mapping[str, str]) -> Spec:
    page = setup.config.datasette
    password = page.password.get_secret_value() if page.password is not None else None
    try:
        argv, broken = datasette.datasette_argv(setup.config.db_path, page.host, page.port, password), None
    except ConfigError as error:
        argv, broken = [], str(error)
    web = f"http://127.0.0.1:{setup.web_port}" if setup.web_port is not None else None
    return Spec(
        "datasette",
        argv,
        env=datasette.datasette_env(env, password=password, pages=setup.datasette_url, gateway=setup.url, web=web),
        ready=http_ready(datasette.ready_url(reachable(page.host), page.port, password)),
        grace_s=DATASETTE_GRACE_S,
        listens=(page.host, page.port),
        broken=broken,
        port_hint="set another datasette.port",
    )
