"""The application on its socket, beside everything else the launcher does."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
from fastapi import FastAPI

from llmtap_launcher.api.server import ApiServer
from support.wait import eventually_async


async def test_it_serves_and_leaves_signals_alone_and_a_long_answer_does_not_hold_up_the_end(tmp_path: Path) -> None:
    app = FastAPI()
    asked = asyncio.Event()

    @app.get("/quick")
    async def quick() -> int:
        return 1

    @app.get("/long")
    async def long() -> None:
        asked.set()
        await asyncio.Event().wait()

    before = signal.getsignal(signal.SIGTERM)
    server = ApiServer(app)
    await server.start(tmp_path / "s")
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(tmp_path / "s"))) as client:
        assert (await client.get("http://x/quick")).json() == 1
        assert signal.getsignal(signal.SIGTERM) is before
        waiting = asyncio.create_task(client.get("http://x/long"))
        await asyncio.wait_for(asked.wait(), 10)
        await asyncio.wait_for(server.close(), 10)
        await eventually_async(waiting.done, "nobody ends the request")
        assert waiting.exception() is not None or waiting.result().status_code >= 500
