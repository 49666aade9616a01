"""Sleep and pause, as vLLM has them with `--enable-sleep-mode` and `VLLM_SERVER_DEV_MODE=1`: `/health` stays 200, and requests
hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response


class Rest:
    """Whether the engine sleeps or is paused. `over()` waits for the end of both."""

    def __init__(self) -> None:
        self.sleeping = False
        self.paused = False
        self._working = asyncio.Event()
        self._working.set()

    def set(self, *, sleeping: bool | None = None, paused: bool | None = None) -> None:
        """Change either."""
        self.sleeping = self.sleeping if sleeping is None else sleeping
        self.paused = self.paused if paused is None else paused
        if self.sleeping or self.paused:
            self._working.clear()
        else:
            self._working.set()

    @property
    def now(self) -> bool:
        """Whether requests hang."""
        return not self._working.is_set()

    async def over(self) -> None:
        """Until the engine works again."""
        await self._working.wait()


Handler = Callable[[Request], Awaitable[Response]]


def routes(rest: Rest) -> list[tuple[str, str, Handler]]:
    """(method, path, handler) of vLLM's routes for it."""

    def change(sleeping: bool | None = None, paused: bool | None = None) -> Handler:
        async def handler(request: Request) -> Response:
            rest.set(sleeping=sleeping, paused=paused)
            return Response(status_code=200)

        return handler

    async def is_sleeping(request: Request) -> Response:
        return Response(orjson.dumps({"is_sleeping": rest.sleeping}), media_type="application/json")

    async def is_paused(request: Request) -> Response:
        return Response(orjson.dumps({"is_paused": rest.paused}), media_type="application/json")

    return [
        ("POST", "/sleep", change(sleeping=True)),
        ("POST", "/wake_up", change(sleeping=False)),
        ("GET", "/is_sleeping", is_sleeping),
        ("POST", "/pause", change(paused=True)),
        ("POST", "/resume", change(paused=False)),
        ("GET", "/is_paused", is_paused),
    ]
