"""How a Datasette process on a capture database is started, and what is checked before.

The process is plain `datasette serve`: it opens the file read-only (`mode=ro`; never immutable, `-i`, which would show a live
file's past), so it may run beside the writer, and sees every row as soon as it is committed. `/-/versions.json` answers when it
is ready.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import llmtap
import llmtap_launcher
from llmtap.core.errors import ConfigError, LlmtapError

#: what the pages' process finds in its environment
PASSWORD_VARIABLE, PAGES_VARIABLE = "LLMTAP_DATASETTE_PASSWORD", "LLMTAP_PAGES_URL"
GATEWAY_VARIABLE, WEB_VARIABLE = "LLMTAP_GATEWAY_URL", "LLMTAP_MITMWEB_URL"

HERE = Path(__file__).resolve().parent
READY_PATH = "/-/versions.json"
STATIC_MOUNT = "-/llmtap"

SETTINGS: dict[str, int | str] = {
    "sql_time_limit_ms": 5000,
    "facet_time_limit_ms": 1000,
    "suggest_facets": "off",
    "max_returned_rows": 5000,
    "default_page_size": 50,
    "default_cache_ttl": 0,  # the file is live: a page is never older than its request
    "allow_download": "off",
}


def is_loopback(host: str) -> bool:
    """Is it an address of this machine only? Names other than `localhost` are not looked up and are not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, password: str | None = None) -> None:
    """Raises ConfigError for a host that others can reach without a password: the pages show every prompt."""
    if not is_loopback(host) and not password:
        raise ConfigError(
            f"datasette host {host!r} can be reached from other machines, and the pages show every captured prompt "
            "without a password: set datasette.password (or LLMTAP_DATASETTE__PASSWORD), or use 127.0.0.1 (from "
            "elsewhere: ssh -L "
            "8001:127.0.0.1:8001 HOST)"
        )


def check_database(db: Path) -> None:
    """Raises LlmtapError (one line) when `db` is not a capture database that can be read."""
    if not db.exists():
        raise LlmtapError(f"{db}: no such file")
    if not db.is_file():
        raise LlmtapError(f"{db}: not a file")
    if set(str(db)) & set("?#%"):
        raise LlmtapError(f"{db}: Datasette cannot open a path with ?, # or % in it; rename or copy the file")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(db.absolute()))}?mode=ro", uri=True)) as conn:
            names = {row[0] for row in conn.execute("select name from sqlite_master where type in ('table', 'view')")}
    except sqlite3.DatabaseError as error:
        if "not a database" in str(error):
            raise LlmtapError(f"{db}: not an SQLite file") from None
        # one in WAL mode, as ours are, needs its two companion files, and somebody has to make them
        hint = "; copy it to a folder that can be written" if isinstance(error, sqlite3.OperationalError) else ""
        raise LlmtapError(f"{db}: cannot be read: {error}{hint}") from None
    if not {"exchanges", "messages", "bodies", "requests"} <= names:
        raise LlmtapError(f"{db}: not a capture database (no exchanges in it)")


def check_port(host: str, port: int) -> None:
    """Raises LlmtapError when nobody can listen there; port 0 (any free one) always passes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server will: an old connection in TIME_WAIT is no obstacle
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            why = "is already in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise LlmtapError(f"port {port} on {host} {why}; choose another with --port") from None


def datasette_argv(db: Path, host: str, port: int, password: str | None = None) -> list[str]:
    """The command line of a Datasette on `db`, to be run with `datasette_env()`. Raises ConfigError for a host off loopback
    without a password (which is in the environment, not here)."""
    check_host(host, password)
    # -P: the folder it is started in must not shadow what it imports
    argv = [sys.executable, "-P", "-m", "datasette", "serve", str(db), "--host", host.strip("[]"), "--port", str(port)]
    argv += ["--metadata", str(HERE / "metadata.yml")]
    argv += ["--plugins-dir", str(HERE / "plugins")]
    argv += ["--template-dir", str(HERE / "templates")]
    argv += ["--static", f"{STATIC_MOUNT}:{HERE / 'static'}"]
    for name, value in SETTINGS.items():
        argv += ["--setting", name, str(value)]
    return argv


def datasette_env(
    env: Mapping[str, str] | None = None,
    *,
    password: str | None = None,
    pages: str | None = None,
    gateway: str | None = None,
    web: str | None = None,
) -> dict[str, str]:
    """`env` (default: this process's) such that the plugins find our packages, also from a checkout that is not installed.

    What the pages are told: their `password`, and the addresses of themselves, the gateway and mitmweb, for their links.
    """
    out = dict(os.environ if env is None else env)
    roots = [str(Path(str(package.__file__)).resolve().parents[1]) for package in (llmtap, llmtap_launcher)]
    known = [p for p in out.get("PYTHONPATH", "").split(os.pathsep) if p and p not in roots]
    out["PYTHONPATH"] = os.pathsep.join([*dict.fromkeys(roots), *known])
    told = {PASSWORD_VARIABLE: password, PAGES_VARIABLE: pages, GATEWAY_VARIABLE: gateway, WEB_VARIABLE: web}
    for name, value in told.items():
        out.pop(name, None)
        if value:
            out[name] = value
    return out


def base_url(host: str, port: int) -> str:
    """`http://127.0.0.1:8001`, with brackets around an IPv6 address."""
    name = host.strip("[]")
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def ready_url(host: str, port: int, password: str | None = None) -> str:
    """What answers 200 when the pages are ready. It has the password in it: not to be shown."""
    base = base_url(host, port)
    return f"{base.replace('://', f'://llmtap:{quote(password, safe="")}@') if password else base}{READY_PATH}"
