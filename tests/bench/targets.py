"""What is measured: nothing in between, nginx, llmtap's lane, mitmproxy's stock reverse mode, before the same fake engine.

Every server under test runs on one CPU; the fake and the load client have the others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import proc

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
GATEWAY = ROOT / "addons" / "gateway.py"


class CannotRun(Exception):
    """A target that could not be installed or started; the message says why, in one line."""


@dataclass
class Target:
    """A server to send requests to. `process` is None for the engine itself."""

    name: str
    port: int
    process: subprocess.Popen[str] | None = None
    model: str = "fake"

    @property
    def pids(self) -> list[int]:
        return proc.family(self.process.pid) if self.process else []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running_fake(nice: int = 0) -> Iterator[Target]:
    """The fake engine."""
    process = proc.spawn([sys.executable, str(HERE.parent / "fake.py")], proc.INSTRUMENTS, nice=nice)
    try:
        assert process.stdout is not None
        yield Target("fake", int(process.stdout.readline()), process)
    finally:
        proc.stop(process)


@contextlib.contextmanager
def running(
    name: str,
    argv: list[str],
    port: int,
    folder: Path,
    *,
    env: dict[str, str] | None = None,
    timeout_s: float = 30,
    nice: int = 0,
) -> Iterator[Target]:
    """Start a server and wait until a chat request through it is answered. Raises CannotRun."""
    log = folder / f"{name}.log"
    try:
        process = proc.spawn(argv, proc.SERVER, env=env or dict(os.environ), cwd=folder, log=log, nice=nice)
    except OSError as error:
        raise CannotRun(f"{argv[0]}: {error.strerror}") from None
    target = Target(name, port, process)
    try:
        if not proc.wait_until(lambda: process.poll() is not None or answers(target), timeout_s):
            raise CannotRun(f"gave no answer within {timeout_s:.0f} s{last_words(log)}")
        if process.poll() is not None:
            raise CannotRun(f"ended with status {process.returncode}{last_words(log)}")
        if not proc.owner_of_port(port) & set(target.pids):
            raise CannotRun(f"port {port} belongs to another process")
        yield target
    finally:
        proc.stop(process)


HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-bench"}


def answers(target: Target) -> bool:
    body = f'{{"model":"{target.model}","messages":[{{"role":"user","content":"hello"}}],"max_tokens":1}}'
    connection = HTTPConnection("127.0.0.1", target.port, timeout=5)
    try:
        connection.request("POST", "/v1/chat/completions", body, HEADERS)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def last_words(log: Path) -> str:
    """The last line that a server which did not start had to say."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return f": {lines[-1][:300]}" if lines else ""


# ---- the targets


def nginx(folder: Path, backend: int, nice: int) -> contextlib.AbstractContextManager[Target]:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise CannotRun("nginx is not installed (apt-get install nginx-light)")
    port = free_port()
    temporary = "".join(f"  {kind}_temp_path {folder}/tmp;\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 1m; keepalive_requests 10000000;
{temporary}  upstream engine {{ server 127.0.0.1:{backend}; keepalive 8192; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
    )
    return running("nginx", [binary, "-p", str(folder), "-c", str(folder / "nginx.conf")], port, folder, nice=nice)


def environment() -> dict[str, str]:
    """The environment without settings of llmtap, and with this checkout's source."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMTAP_")}
    return kept | {"PYTHONPATH": f"{ROOT / 'addons'}{os.pathsep}{ROOT / 'launcher'}"}


def config(folder: Path, backend: int, port: int) -> Path:
    """A configuration with everything on but the line for each request on standard output."""
    path = folder / "llmtap.yaml"
    path.write_text(
        f"""server: {{host: 127.0.0.1, port: {port}}}
backends: [{{name: fake, url: "http://127.0.0.1:{backend}", max_concurrency: 100000}}]
auth: {{enabled: true, keys: [{{name: bench, key: sk-bench}}]}}
capture: {{dir: {folder / "data"}}}
logging: {{request_log: false}}
"""
    )
    return path


MITMDUMP = [sys.executable, "-c", "from mitmproxy.tools.main import mitmdump; mitmdump()", "-q"]


def lane(folder: Path, backend: int, nice: int) -> contextlib.AbstractContextManager[Target]:
    """The gateway as `llmtap up` runs it."""
    port = free_port()
    argv = [sys.executable, "-m", "llmtap.master", "--config", str(config(folder, backend, port)), "--confdir", str(folder)]
    return running("lane", argv, port, folder, env=environment(), nice=nice)


def mitmdump(folder: Path, backend: int, nice: int) -> contextlib.AbstractContextManager[Target]:
    """The same lane under mitmdump, with mitmproxy's own addons."""
    port = free_port()
    options = [
        "--set",
        f"llmtap_config={config(folder, backend, port)}",
        "--set",
        "llmtap_writer=false",
        "--set",
        f"confdir={folder}",
    ]
    return running("mitmdump", [*MITMDUMP, "-s", str(GATEWAY), *options], port, folder, env=environment(), nice=nice)


def stock(folder: Path, backend: int, nice: int) -> contextlib.AbstractContextManager[Target]:
    """The same addons under mitmproxy's own reverse mode."""
    port = free_port()
    env = environment() | {"LLMTAP_CAPTURE__DIR": str(folder / "data"), "LLMTAP_LOGGING__REQUEST_LOG": "false"}
    options = ["--listen-port", str(port), "--set", "llmtap_writer=false", "--set", f"confdir={folder}"]
    argv = [*MITMDUMP, "-s", str(GATEWAY), "--mode", f"reverse:http://127.0.0.1:{backend}", *options]
    return running("stock", argv, port, folder, env=env, nice=nice)


LOCAL = {"nginx": nginx, "lane": lane, "mitmdump": mitmdump, "stock": stock}
