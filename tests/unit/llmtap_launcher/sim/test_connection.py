"""The connection on a real socket pair of the loop: callbacks, chunk framing, resets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from llmtap_launcher.sim.connection import Connection, connection_of


class Flow(asyncio.Protocol):
    """Stands for uvicorn's protocol: a transport and its flow control."""

    def __init__(self) -> None:
        self.flow = self
        self.write_paused = False
        self.connection: Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.connection = Connection(self, transport)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        assert self.connection is not None
        self.connection.connection_lost()


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Flow, Connection, socket.socket]]:
    """A server side connection and the client's blocking socket."""
    loop = asyncio.get_running_loop()
    made: list[Flow] = []

    def factory() -> Flow:
        made.append(Flow())
        return made[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        while not (made and made[0].connection):
            await asyncio.sleep(0)
        try:
            assert made[0].connection is not None
            yield made[0], made[0].connection, client
        finally:
            assert made[0].connection is not None
            made[0].connection.close()
            client.close()
            await made[0].connection.wait_lost()
            server.close()
            await server.wait_closed()


async def test_chunks_and_raw_bytes() -> None:
    async with pair() as (_, connection, client):
        connection.write_chunk(b"data: {}\n\n")
        connection.write_raw(b"raw")
        connection.close()
        connection.write_chunk(b"too late")
        connection.write_raw(b"too late")
        received = b""
        while piece := await asyncio.get_running_loop().sock_recv(client, 100):
            received += piece
        assert received == b"a\r\ndata: {}\n\n\r\nraw"


async def test_a_reset_reaches_the_client() -> None:
    async with pair() as (_, connection, client):
        connection.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(client, 100)


async def test_callbacks_of_a_lost_connection() -> None:
    async with pair() as (_, connection, client):
        calls: list[str] = []

        def forgotten() -> None:
            calls.append("forgotten")

        connection.when_lost(lambda: calls.append("early"))
        connection.when_lost(forgotten)
        connection.forget(forgotten)
        assert not connection.lost
        client.close()
        assert await connection.wait_lost(20)
        connection.when_lost(lambda: calls.append("late"))
        assert calls == ["early", "late"]


async def test_waiting_ends_with_the_time() -> None:
    async with pair() as (_, connection, _client):
        assert not await connection.wait_lost(0.001)


async def test_blocked_is_the_flow_controls_word() -> None:
    async with pair() as (flow, connection, _client):
        assert not connection.blocked
        flow.write_paused = True
        assert connection.blocked


async def test_the_scope_has_it() -> None:
    async with pair() as (_, connection, _client):
        assert connection_of({"llmtap.connection": connection}) is connection
