"""A real gateway process for tests: `mitmdump -s addons/gateway.py` on a free port, ready when `/health` answers."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import yaml

from llmtap.spool.reader import Bad, read
from support.forking import Forked, known
from support.wait import eventually

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "addons" / "gateway.py"
MITMDUMP = [sys.executable, "-c", "from mitmproxy.tools.main import mitmdump; mitmdump()"]


def _ports() -> Iterator[int]:
    """Each test process has ports of its own, below those the system gives to clients and to others that ask for any:
    gateways share a port (SO_REUSEPORT), so two that were told the same one would both answer."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(10_000 + worker % 8 * 2_500, 12_500 + worker % 8 * 2_500)
    start = os.getpid() * 7  # another run on this machine begins elsewhere
    for i in itertools.count(start):
        yield ports[i % len(ports)]


_PORTS = _ports()


def free_port() -> int:
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass
class Gateway:
    """A running gateway. `data` is its capture folder."""

    process: subprocess.Popen[str] | Forked
    port: int
    data: Path
    output: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def records(self) -> list[dict[str, Any]]:
        """Every spool record written so far, in the order of the segments."""
        out = []
        for path in sorted((self.data / "spool").glob("*.jsonl")):
            for _, item in read(path, 0):
                assert not isinstance(item, Bad), item
                out.append(orjson.loads(item))
        return out

    def exchange(self, uid: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The begin and the end record of one exchange, once both are there."""

        def both() -> tuple[dict[str, Any], dict[str, Any]] | None:
            found = {r["t"]: r for r in self.records() if r.get("uid") == uid}
            return (found["begin"], found["end"]) if len(found) == 2 else None

        return eventually(both, f"no complete exchange {uid}")

    def last(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The exchange that began last."""

        def newest() -> str | None:
            return next((r["uid"] for r in reversed(self.records()) if r["t"] == "begin"), None)

        return self.exchange(eventually(newest, "nothing captured"))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        families = httpx.get(f"{self.url}/internal/metrics").json()
        return sum(
            s["value"]
            for f in families.values()
            for s in f["samples"]
            if s["name"] == name and all(s["labels"].get(k) == v for k, v in labels.items())
        )

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout=20)


@contextlib.contextmanager
def running_gateway(
    data: Path,
    config: dict[str, Any] | None = None,
    *,
    mode: str | None = None,
    options: tuple[str, ...] = (),
    writer: bool = False,
    env: dict[str, str] | None = None,
    port: int | None = None,
    command: list[str] | None = None,
    ready: bool = True,
    master: bool = False,
    script: Path = SCRIPT,
    quiet: bool = True,
) -> Iterator[Gateway]:
    """Start one. With `mode` (`reverse:http://…`) there is no configuration file, and captures go to `data` through the
    environment; else `config` is written beside the data, its server.port and capture.dir filled in. `master`: the gateway
    alone (what `llmtap up` runs) instead of mitmdump. `quiet`: mitmdump says nothing."""
    port = port or free_port()
    data.mkdir(parents=True, exist_ok=True)
    argv = [
        *(command or MITMDUMP),
        *(["-q"] if quiet else []),
        "-s",
        str(script),
        "--set",
        f"llmtap_writer={'true' if writer else 'false'}",
        *options,
    ]
    full_env = {k: v for k, v in os.environ.items() if not k.startswith("LLMTAP_")} | {"PYTHONUNBUFFERED": "1"} | (env or {})
    full_env.setdefault("LLMTAP_CAPTURE__DIR", str(data))
    full_env = {k: v for k, v in full_env.items() if v}
    if mode is not None:
        argv += ["--mode", mode, "--listen-port", str(port)]
    if mode is None or config is not None:
        config = dict(config or {})
        config["server"] = {"host": "127.0.0.1", "port": port, **config.get("server", {})}
        path = data / "llmtap.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        argv += ["--set", f"llmtap_config={path}"]
    if master:
        argv = [sys.executable, "-m", "llmtap.master", "--config", str(path), "--confdir", str(data / "mitmproxy")]
        full_env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "addons"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process: subprocess.Popen[str] | Forked
    if known(argv) and script == SCRIPT:
        process = Forked(argv, full_env, data)
    else:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=full_env, cwd=data)
    gateway = Gateway(process, port, data)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: gateway.output.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        if ready:
            try:
                eventually(lambda: _answers(gateway), "the gateway did not get ready")
            except AssertionError as error:
                raise AssertionError(f"{error}; it said:\n{''.join(gateway.output)}") from None
        yield gateway
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(timeout=5)
        process.stdout.close()


def _answers(gateway: Gateway) -> bool:
    if gateway.process.poll() is not None:
        raise AssertionError("the gateway ended:\n" + "".join(gateway.output))
    try:
        return httpx.get(f"{gateway.url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def wait_up(gateway: Gateway) -> None:
    """Until every backend passed its health check."""
    eventually(
        lambda: all(state == "up" for state in httpx.get(f"{gateway.url}/health/ready").json()["backends"].values()),
        "a backend is not up",
    )
