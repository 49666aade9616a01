"""What `llmtap status` knows: the launcher's state, the gateway's own numbers, the writer's status, put together.

Each source is optional. A gateway that was started without the launcher (`mitmdump -s`) is found by its configured address.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmtap.core.config import Config
from llmtap.core.sockets import MANAGEMENT

from .health import reachable
from .report import process_states, size
from .runtime import RunFolder
from .store.status import read_status

Section = tuple[Sequence[str] | None, list[list[str]]]


async def gather(config: Config) -> dict[str, Any] | None:
    """Everything there is to know, as plain data; None when neither a launcher nor a gateway is there.

    Keys: `launcher` (pid, phase, since, processes, urls) or null; `gateway` (in_flight, waiting, spool_bytes, backends ...)
    or null; `writer` (state, lag_s, ...) or null; `backends`; `data`, `database`, `database_bytes`.
    """
    state = RunFolder(config.capture.dir).running()
    base = (state or {}).get("urls", {}).get("gateway") or (
        f"{config.server.scheme}://{reachable(config.server.host)}:{config.server.port}"
    )
    stats, own = await asyncio.gather(fetch(f"{base}/stats"), ask_launcher(state))
    if own is not None:
        # needs no key, and knows more of backends; the gateway's own page has its metrics beside that
        stats = {**(own.get("gateway") or {}), **(stats or {})} or None
    if state is None and stats is None:
        return None
    return facts(config, state, stats)


async def ask_launcher(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`/api/v1/status` over the launcher's socket, which only this user can open; None without one."""
    folder = (state or {}).get("sockets")
    path = Path(str(folder)) / MANAGEMENT
    if folder is None or not path.exists():
        return None
    import httpx

    try:
        async with httpx.AsyncClient(timeout=3, transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
            answer = await client.get("http://llmtap/api/v1/status")
            found = answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def facts(config: Config, state: Mapping[str, Any] | None, stats: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `gather` gives, of a launcher's state and a gateway's numbers."""
    writer = read_status(config.capture.dir)
    database = config.db_path.absolute()
    return {
        "launcher": launcher(state) if state is not None else None,
        "gateway": stats,
        "writer": asdict(writer) | {"age_s": round(max(0.0, time.time() - writer.at), 1)} if writer is not None else None,
        "backends": backends(state, stats),
        "data": str(config.capture.dir.absolute()),
        "database": str(database),
        "database_bytes": sum(found for suffix in ("", "-wal") if (found := _size(f"{database}{suffix}")) is not None),
    }


def launcher(state: Mapping[str, Any]) -> dict[str, Any]:
    """The launcher's own part of its state."""
    return {
        "pid": state["launcher"]["pid"],
        "phase": state.get("phase"),
        "uptime_s": round(max(0.0, time.time() - state.get("started_at", time.time())), 1),
        "urls": state.get("urls", {}),
        "processes": state.get("processes", []),
    }


def backends(state: Mapping[str, Any] | None, stats: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row a backend: its health as the gateway sees it, its process as the launcher does."""
    processes = process_states(state or {})
    told = {backend["name"]: backend for backend in (stats or {}).get("backends", [])}
    known = {backend["name"]: backend for backend in (state or {}).get("backends", [])}
    rows = []
    for name in dict.fromkeys([*known, *told]):
        seen, own = told.get(name, {}), known.get(name, {})
        rows.append(
            {
                "name": name,
                "url": seen.get("url") or own.get("url"),
                "health": seen.get("state"),
                "reason": seen.get("reason"),
                "process": processes.get(name),
                "in_flight": seen.get("in_flight"),
                "models": seen.get("models") or ([own["model"]] if own.get("model") else []),
            }
        )
    return rows


def sections(found: Mapping[str, Any]) -> list[Section]:
    """The tables of the command's text output."""
    own, gateway, writer = found["launcher"], found["gateway"], found["writer"]
    head: list[list[str]] = []
    if own is not None:
        head += [["launcher", f"{own['phase']}, process {own['pid']}, up {duration(own['uptime_s'])}"]]
        head += [[key, url] for key, url in own["urls"].items() if url and key in ("openai", "datasette", "metrics", "web")]
    else:
        head += [["launcher", "none (the gateway was started by itself)"]]
    if gateway is None:
        head += [["gateway", "does not answer"]]
    else:
        workers = gateway.get("workers", [])
        if len(workers) > 1:
            loads = ", ".join(f"{worker['in_flight']} in flight in process {worker['pid']}" for worker in workers)
            head += [["workers", f"{len(workers)}: {loads}"]]
        head += [["in flight", str(gateway.get("in_flight", "-"))], ["waiting", str(gateway.get("waiting", "-"))]]
        head += [["capture", {True: "ok", False: "in trouble", None: "off"}[gateway.get("capture_healthy")]]]
    if writer is None:
        head += [["spool lag", "unknown (no writer)"]]
    else:
        state = writer["state"] + (f": {writer['error']}" if writer["error"] else "")
        head += [["writer", state], ["spool lag", f"{writer['lag_s']:.1f} s"], ["spool size", size(writer["spool_bytes"])]]
    head += [["database size", f"{size(found['database_bytes'])} ({found['database']})"]]
    rows = [
        [
            backend["name"],
            (backend["health"] or "-") + (f" ({backend['reason']})" if backend["reason"] else ""),
            backend["process"] or "not ours",
            "-" if backend["in_flight"] is None else str(backend["in_flight"]),
            backend["url"] or "-",
            ", ".join(backend["models"]) or "-",
        ]
        for backend in found["backends"]
    ]
    tables: list[Section] = [(None, head)]
    if rows:
        tables.append((("backend", "health", "process", "in flight", "url", "models"), rows))
    if own is not None:
        names = {backend["name"] for backend in found["backends"]}
        others = [[name, words] for name, words in process_states(own).items() if name not in names]
        tables.append((("process", "state"), others))
    return tables


def duration(seconds: float) -> str:
    """59 s, 12 min, 5 h 3 min, 2 d 4 h."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


async def fetch(url: str) -> dict[str, Any] | None:
    """A JSON object by GET; None when there is none to be had."""
    import httpx

    key = os.environ.get("LLMTAP_KEY")  # where the gateway demands one, as `llmtap metrics` and `top` take it
    try:
        # our own gateway on this machine: its certificate is for the name that clients know it by
        async with httpx.AsyncClient(timeout=3, trust_env=False, verify=False) as client:
            answer = await client.get(url, headers={"authorization": f"Bearer {key}"} if key else {})
            found = answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
    # whoever else listens on that port says other things
    return found if isinstance(found, dict) and "backends" in found else None


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None
