"""The gateway process: `llmtap.master`, or for looking in `mitmweb` with our script, told where its configuration is.

The launcher knows more than the user's file (ports of engines it starts, options of the command line), so it writes the
configuration that is in force to a private file and every process of the run reads that one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import llmtap
import llmtap_launcher

from .guard import RUN_VARIABLE

WEB_PORT = 8081
_WEB_URL = re.compile(r"https?://\S+?/?\?token=[\w-]+")


def source_roots() -> list[str]:
    """The folders our two packages are imported from (the same one when installed)."""
    packages = (llmtap, llmtap_launcher)
    return list(dict.fromkeys(str(Path(str(package.__file__)).resolve().parents[1]) for package in packages))


def child_env(run: str, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of our own Python processes: they find our packages, bear the run's mark, and write lines as they come.

    `LLMTAP_*` is left out: the file they read is the outcome of environment and command line, which must not be applied again.
    """
    out = {k: v for k, v in env.items() if not k.startswith("LLMTAP_")}
    roots = source_roots()
    known = [path for path in out.get("PYTHONPATH", "").split(os.pathsep) if path and path not in roots]
    out["PYTHONPATH"] = os.pathsep.join([*roots, *known])
    out["PYTHONUNBUFFERED"] = "1"
    out[RUN_VARIABLE] = run
    return out


def foreign_env(run: str, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of somebody else's programs: none of our packages in their way, and the run's mark."""
    out = child_env(run, env)
    roots = source_roots()
    paths = [path for path in out.pop("PYTHONPATH").split(os.pathsep) if path not in roots]
    if paths:
        out["PYTHONPATH"] = os.pathsep.join(paths)
    if "PYTHONUNBUFFERED" not in env:
        del out["PYTHONUNBUFFERED"]
    out.pop("VIRTUAL_ENV", None)
    return out


def gateway_argv(
    script: Path,
    config_file: Path,
    confdir: Path,
    *,
    web_port: int | None = None,
    shared_metrics: Path | None = None,
    sockets: Path | None = None,
) -> list[str]:
    """Command line of the gateway; with `web_port` it is mitmweb, for interactive inspection on 127.0.0.1.

    `confdir`: mitmproxy's own folder. Not the user's ~/.mitmproxy, whose options (a mode, scripts) would change the gateway.
    `shared_metrics`: where one of several on a port meets the others; it prints a line when it listens (`LISTENS`).
    `sockets`: the folder with the launcher's (`llmtap.core.sockets`).
    """
    # -P: the folder it is started in must not shadow what it imports
    python = [sys.executable, "-P"]
    if web_port is None:
        argv = [*python, "-m", "llmtap.master", "--config", str(config_file), "--confdir", str(confdir)]
        argv += ["--launcher", str(sockets)] if sockets is not None else []
        return argv if shared_metrics is None else [*argv, "--shared-metrics", str(shared_metrics), "--say-ready"]
    argv = [*python, "-c", "from mitmproxy.tools.main import mitmweb; mitmweb()", "-s", str(script)]
    options = {
        "confdir": confdir,
        "llmtap_config": config_file,
        "llmtap_writer": "false",  # the launcher runs the writer
        "web_host": "127.0.0.1",
        "web_port": web_port,
        "web_open_browser": "false",
    }
    if sockets is not None:
        options["llmtap_launcher"] = sockets
    return [*argv, *(part for key, value in options.items() for part in ("--set", f"{key}={value}"))]


#: the line, as a regular expression; `llmtap.master.READY`, which is not imported: it takes mitmproxy with it
LISTENS = r"^llmtap\.master: the port is open$"


def web_url(lines: Iterable[str]) -> str | None:
    """mitmweb's address with its token, picked out of what it prints; None while it has not said it."""
    for line in lines:
        match = _WEB_URL.search(line)
        if match:
            return match[0]
    return None
