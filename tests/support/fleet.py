"""A Fleet over real simulated engines, with a gateway that is played: it knows what it is told and says what a test wants."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from llmtap.core import config_load
from llmtap.core.config import Config
from llmtap_launcher.api.app import create_app
from llmtap_launcher.api.desk import Desk
from llmtap_launcher.fleet import Fleet
from llmtap_launcher.gateway_link import GatewayLink, Refused
from llmtap_launcher.plan import EFFECTIVE, decide, make_plan
from llmtap_launcher.runtime import RunFolder
from llmtap_launcher.supervisor import Supervisor


class PlayedLink(GatewayLink):
    """One gateway that sees every backend of its file up, unless `sick` names it. `refuses`: what it says to a reload."""

    def __init__(self, effective: Path) -> None:
        super().__init__()
        self.effective = effective
        self.picture: Mapping[str, Any] = {}
        self.load: dict[str, list[float]] = {}
        self.requests: list[dict[str, Any]] = []
        self.sick: set[str] = set()
        self.refuses: str | None = None
        self.served: list[str] = []
        self.asked: list[str] = []
        self.read()

    def read(self) -> None:
        self.config = config_load.load(self.effective, {}, {})
        self.served = [backend.name for backend in self.config.backends]

    @property
    def gateways(self) -> int:
        return 1

    async def ask(self, do: str, **more: Any) -> list[Any]:
        self.asked.append(do)
        match do:
            case "picture":
                self.picture = more["backends"]
                return [True]
            case "reload":
                if self.refuses is not None:
                    reason, self.refuses = self.refuses, None
                    raise Refused(reason)
                self.read()
                return [True]
            case "load":
                return [self.load]
            case "in_flight":
                return [self.requests]
            case "cancel":
                return [any(request["id"] == more["uid"] for request in self.requests)]
            case "stats":
                rows = [
                    {
                        "name": n,
                        "state": "down" if n in self.sick else "up",
                        "reason": "",
                        "in_flight": 0,
                        "models": [],
                        "draining": False,
                    }
                    for n in self.served
                ]
                return [{"in_flight": 2, "waiting": 1, "backends": rows}]
        raise AssertionError(do)


class Bench:
    """`fleet` and what surrounds it; `api` asks the management API over it."""

    def __init__(self, tmp_path: Path, config: Config) -> None:
        self.lines: list[str] = []
        self.folder = RunFolder(tmp_path / "data")
        self.folder.path.mkdir(parents=True)
        run = str(tmp_path)
        setup = decide(config.model_copy(update={"capture": config.capture.model_copy(update={"dir": tmp_path / "data"})}))
        log = lambda name, line: self.lines.append(f"{name} | {line}")  # noqa: E731
        plan = make_plan(setup, self.folder, run, os.environ)
        self.supervisor = Supervisor(plan, self.folder, run, log=log, pid=os.getpid())
        self.link = PlayedLink(self.folder.path / EFFECTIVE)
        self.fleet = Fleet(setup, self.supervisor, self.link, run=run, env=os.environ, folder=self.folder.path, log=log)
        self.reloads: list[str] | None = []
        self.api = create_app(Desk(self.fleet, self.link, self._status, self._reload))

    async def _status(self) -> dict[str, Any]:
        return {"launcher": None, "writer": None, "data": "d", "database": "d/db", "database_bytes": 1}

    async def _reload(self) -> list[str] | None:
        return self.reloads

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.api), base_url="http://llmtap", timeout=60)

    def state(self, name: str) -> str:
        return self.fleet.members[name].state

    async def close(self) -> None:
        await self.fleet.close()
        for process in self.supervisor.processes:
            await process.stop(5.0)
        await self.supervisor.guard.close()


def sims(*backends: Mapping[str, Any], **sections: Any) -> Config:
    """A configuration of simulated engines: `{name: a, model: m, ...keys of launch}` each."""
    made = [{"name": b["name"], "launch": {"engine": "sim", **{k: v for k, v in b.items() if k != "name"}}} for b in backends]
    return Config.model_validate({"backends": made, "datasette": {"enabled": False}, **sections})


@contextlib.asynccontextmanager
async def running_fleet(tmp_path: Path, config: Config) -> AsyncIterator[Bench]:
    """A fleet at work; no process runs before somebody has it started."""
    bench = Bench(tmp_path, config)
    await bench.supervisor.guard.start()
    await bench.fleet.start()
    try:
        yield bench
    finally:
        await bench.close()
