"""The gateway's end of the line to its launcher: it answers what the launcher asks, and says when a stopped backend is wanted.

JSON objects, one a line, over a UNIX socket on which the launcher listens; the gateway connects, and again whenever the line is
lost. Without it the gateway goes on serving with what it knows.

    launcher → gateway   {"id": 7, "do": "cancel", "uid": "01J..."}       gateway → launcher   {"id": 7, "value": true}
                         {"id": 8, "do": "reload"}                                             {"id": 8, "error": "line 3: ..."}
                                                                                               {"wanted": "a"}

`picture` is what the launcher knows of backends and the gateway cannot: those that are stopped on purpose, whether a request may
wait for their start, and those that get no further requests. It holds until the next one, also over a reload.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from llmtap.core.sockets import MAX_LINE
from llmtap.policy.backends import Backend, Backends

AGAIN_S = 0.2
log = logging.getLogger("llmtap")


class Host(Protocol):
    """The gateway, as the launcher sees it."""

    def in_flight_list(self) -> list[dict[str, Any]]: ...
    def cancel(self, uid: str) -> bool: ...
    def reload_now(self) -> str | None: ...
    def busy(self) -> dict[str, int]: ...
    def stats(self) -> dict[str, Any]: ...
    def backends(self) -> Backends | None: ...
    def check_now(self, backend: Backend) -> None: ...


class Remote:
    """Keeps the line up from `start` to `stop`."""

    def __init__(self, host: Host, path: Path) -> None:
        self._host, self._path = host, path
        self._picture: Mapping[str, Mapping[str, Any]] = {}
        self._wanted: set[str] = set()  # said since the last picture
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Call on the running event loop."""
        self._task = asyncio.create_task(self._keep(), name="llmtap launcher")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(OSError, ValueError):
                await self._talk()
            await asyncio.sleep(AGAIN_S)

    async def _talk(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
        self._writer = writer
        try:
            while line := await reader.readline():
                writer.write(orjson.dumps(self._answer(orjson.loads(line))) + b"\n")
                await writer.drain()
        finally:
            self._writer = None
            writer.close()

    def wanted(self, backend: Backend) -> None:
        """A request waits for this one to be started. Said once; again after the next picture, if it still does."""
        if self._writer is not None and backend.name not in self._wanted:
            self._wanted.add(backend.name)
            self._writer.write(orjson.dumps({"wanted": backend.name}) + b"\n")

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"id": question.get("id"), "value": self._do(question)}
        except _Refused as refused:
            return {"id": question.get("id"), "error": str(refused)}
        except Exception as error:
            log.exception("llmtap: the launcher's %r failed", question.get("do"))
            return {"id": question.get("id"), "error": f"{type(error).__name__} in the gateway"}

    def _do(self, question: dict[str, Any]) -> Any:
        host = self._host
        match question.get("do"):
            case "in_flight":
                return host.in_flight_list()
            case "cancel":
                return host.cancel(str(question.get("uid")))
            case "reload":
                problem = host.reload_now()
                if problem is not None:
                    raise _Refused(problem)
                return True
            case "stats":
                return {**host.stats(), "backends": [b.facts() for b in host.backends() or ()]}
            case "load":
                return self._load()
            case "picture":
                self._picture = question["backends"]
                self.apply()
                return True
        raise _Refused("unknown question")

    def _load(self) -> dict[str, list[float]]:
        """Name of each backend -> requests under way there, also of one that is gone; monotonic time of its last good answer."""
        rows = {b.name: [0.0, b.last_ok] for b in self._host.backends() or ()}
        for name, count in self._host.busy().items():
            rows.setdefault(name, [0.0, 0.0])[0] = count
        return rows

    def apply(self) -> None:
        """Have the backends be what the picture says; after a reload they may be new ones."""
        backends = self._host.backends()
        if backends is None:
            return
        backends.wanted = self.wanted
        self._wanted.clear()  # the launcher has taken note, or the line was lost
        for name, what in self._picture.items():
            if name in backends:
                self._apply(backends, backends[name], what)
        backends.shared.tell_waiting()

    def _apply(self, backends: Backends, backend: Backend, what: Mapping[str, Any]) -> None:
        backends.drain(backend.name, bool(what.get("draining")))
        reason = str(what.get("reason") or "")
        if what.get("stopped"):
            within = what.get("starts_within_s")
            altered = backend.starts_within_s != within
            backend.starts_within_s = within
            if not backends.set_state(backend.name, "stopped", reason, time.time()) and altered:
                backends.shared.altered()
        elif backend.state == "stopped":
            backend.starts_within_s = None
            failed = bool(what.get("failed"))
            backends.set_state(backend.name, "down" if failed else "unknown", reason, time.time())
            self._host.check_now(backend)


class _Refused(Exception):
    """An answer that says why not."""
