"""Runs the application on the launcher's own event loop, on a UNIX socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from llmtap_launcher.gateway_link import listen_private


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to the launcher."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Nothing to capture."""
        yield


class ApiServer:
    """`start`, then `close`."""

    def __init__(self, app: FastAPI, at_end: Callable[[], None] = lambda: None) -> None:
        """`at_end` is called once nobody is answered any more."""
        self._at_end = at_end
        config = uvicorn.Config(
            app, lifespan="off", ws="none", access_log=False, log_config=None, log_level="warning", timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self, path: Path) -> None:
        """Listen at `path`. Raises OSError."""
        self._task = asyncio.create_task(self._server.serve(sockets=[listen_private(path)]), name="management API")

    async def close(self) -> None:
        """Answer what has come in within a second, and end."""
        if self._task is not None:
            self._server.should_exit = True
            await asyncio.wait([self._task])
        self._at_end()
