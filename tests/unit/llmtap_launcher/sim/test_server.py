"""A server in this process: listening, the ready line, outages, signals and grace.

Bytes on the wire are the business of tests/integration/test_sim.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from llmtap_launcher.sim import server
from llmtap_launcher.sim.faults import parse_rule
from llmtap_launcher.sim.simulation import Settings


def test_a_port_that_is_taken_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert server.run(Settings(port=port)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"127.0.0.1:{port}" in error
    assert "in use" in error
    assert "--port" in error


def test_a_host_that_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert server.run(Settings(host="192.0.2.1", port=0)) == 1
    assert "192.0.2.1" in capsys.readouterr().err
    assert server.run(Settings(host="not a host name", port=0)) == 1
    assert "--host" in capsys.readouterr().err


@contextlib.asynccontextmanager
async def serving(capsys: pytest.CaptureFixture[str], settings: Settings) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    """A running server's URL and its task; ended by SIGTERM to this process, as a user would end it."""
    task = asyncio.create_task(server.serve(settings, server.bind(settings.host, settings.port)))
    line = ""
    while not line.endswith("\n"):
        await asyncio.sleep(0)
        assert not task.done()
        line += capsys.readouterr().out
    found = re.fullmatch(r"llmtap sim: (.+) on (http://\S+:\d+)\n", line)
    assert found
    assert found.group(1) == ", ".join(settings.models)
    try:
        yield found.group(2), task
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


async def test_it_serves_until_the_signal(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(capsys, Settings(port=0, models=("a", "b"))) as (url, _), httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/health")).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


async def test_a_stream_in_flight_may_finish(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(capsys, Settings(port=0)) as (url, task), httpx.AsyncClient() as client:
        body = {"prompt": "x", "stream": True, "max_tokens": 30}
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
        await task


async def test_a_stream_that_takes_too_long_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(port=0, tokens_per_second=0.01, ttft_ms=0, shutdown_timeout_s=0)
    async with serving(capsys, settings) as (url, task), httpx.AsyncClient() as client:
        async with client.stream("POST", f"{url}/v1/completions", json={"prompt": "x", "stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in lines:
                    pass
        await task
    assert "Traceback" not in capsys.readouterr().err


async def refused(url: str) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            await client.get(f"{url}/sim/state")
    except httpx.ConnectError:
        return True
    return False


async def test_an_outage_that_ends(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(capsys, Settings(port=0)) as (url, _), httpx.AsyncClient() as client:
        assert (await client.post(f"{url}/sim/fail", json={"kind": "refuse=0.3"})).json()["refusing"]
        assert await refused(url)
        while await refused(url):
            await asyncio.sleep(0.01)
        assert (await client.get(f"{url}/health")).status_code == 200


async def test_an_outage_ends_on_a_connection_that_was_open(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(capsys, Settings(port=0)) as (url, _), httpx.AsyncClient() as client:
        await client.post(f"{url}/sim/fail", json={"kind": "refuse"})
        assert await refused(url)
        assert not (await client.post(f"{url}/sim/reset")).json()["refusing"]
        while await refused(url):
            await asyncio.sleep(0.01)
        assert (await client.get(f"{url}/health")).status_code == 200


async def test_an_outage_closes_idle_connections(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(capsys, Settings(port=0)) as (url, _), httpx.AsyncClient() as idle, httpx.AsyncClient() as control:
        await idle.get(f"{url}/health")
        await control.post(f"{url}/sim/fail", json={"kind": "refuse"})
        with pytest.raises((httpx.ConnectError, httpx.RemoteProtocolError)):
            await idle.get(f"{url}/health")


async def test_an_outage_from_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(capsys, Settings(port=0, rules=(parse_rule("refuse"),))) as (url, _):
        assert await refused(url)
        port = int(url.rpartition(":")[2])
        with pytest.raises(server.ListenError):  # nobody else gets the port meanwhile
            server.bind("127.0.0.1", port)
