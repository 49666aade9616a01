"""`/v1/realtime` through a real gateway process: every message passes, and the exchange ends once, when the socket does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.gateway import ROOT, Gateway, running_gateway, wait_up
from support.lane import PATIENCE_S, Peer, response
from support.lane import upstream as listening
from support.websocket import Socket, accept, echo, handshake, header

pytestmark = pytest.mark.integration


async def backend(peer: Peer) -> None:
    """A vLLM as far as it is needed: healthy, with one model and a realtime socket that echoes, or does what it is told."""
    while True:
        head = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), None)
        if b"/v1/realtime" not in head.split(b"\r\n")[0]:
            peer.send(response(b'{"object":"list","data":[{"id":"m","object":"model"}]}' if b"/v1/models" in head else b""))
            continue
        if b"how=refused" in head:
            peer.send(response(b'{"detail":"no"}', b"403 Forbidden"))
            continue
        socket = await _accepted(peer, head)
        if b"how=dies" in head:
            socket.text("half a")
            await peer.flush()
            peer.reset()
        elif b"how=fails" in head:
            socket.close(1011, "out of memory")
            await socket.event()
        else:
            await echo(socket)
        return


async def _accepted(peer: Peer, head: bytes) -> Socket:
    class Read(Peer):
        async def head(self) -> bytes:
            return head

    return (await accept(Read(peer.reader, peer.writer)))[1]


@contextlib.asynccontextmanager
async def gateway(tmp_path: Path, mode: str) -> AsyncIterator[Gateway]:
    async with listening(backend) as fake:
        config = {"backends": [{"name": "a", "url": f"http://127.0.0.1:{fake.port}"}], "server": {"drain_timeout_s": 0.1}}
        how: dict[str, Any] = (
            {"mode": f"reverse:http://127.0.0.1:{fake.port}"} if mode == "stock" else {"master": mode == "master"}
        )
        running = await asyncio.to_thread(_start, tmp_path, config, how)
        try:
            await asyncio.to_thread(wait_up, running.gateway)
            yield running.gateway
        finally:
            await asyncio.to_thread(running.close)


class _Running:
    def __init__(self, stack: contextlib.ExitStack, gateway: Gateway) -> None:
        self.gateway = gateway
        self.close = stack.close


def _start(tmp_path: Path, config: dict[str, Any], how: dict[str, Any]) -> _Running:
    stack = contextlib.ExitStack()
    return _Running(stack, stack.enter_context(running_gateway(tmp_path, config, **how)))


async def connect(gateway: Gateway) -> Peer:
    return Peer(*await asyncio.open_connection("127.0.0.1", gateway.port))


async def opened(gateway: Gateway, path: str = "/v1/realtime", more: str = "") -> tuple[str, Socket]:
    """(request id, socket)"""
    peer = await connect(gateway)
    peer.send(handshake(path, more=more))
    head = await peer.head()
    assert head.startswith(b"HTTP/1.1 101 "), head
    return header(head, "x-request-id"), Socket(peer, True)


def ingest(folder: Path) -> None:
    argv = [sys.executable, "-m", "llmtap_launcher", "ingest", "--dir", str(folder)]
    env = {"PYTHONPATH": f"{ROOT / 'addons'}:{ROOT / 'launcher'}", "PATH": "/usr/bin:/bin"}
    subprocess.run(argv, check=True, capture_output=True, env=env, timeout=60)


async def exchange(gateway: Gateway, uid: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return await asyncio.wait_for(asyncio.to_thread(gateway.exchange, uid), PATIENCE_S * 2)


@pytest.mark.parametrize("mode", ["lane", "master", "stock"])
async def test_a_session_is_captured_once_at_its_end(tmp_path: Path, mode: str) -> None:
    async with gateway(tmp_path, mode) as running:
        uid, socket = await opened(running)
        for n in range(3):
            socket.text(f'{{"type":"input","n":{n}}}')
            assert await socket.message() == f'{{"type":"input","n":{n}}}'
        socket.binary(b"\0" * 100_000)
        assert await socket.message() == b"\0" * 100_000
        assert [r["t"] for r in running.records() if r["uid"] == uid] == ["begin"]
        socket.close(1000, "done")
        assert await socket.closed() == (1000, "done")
        socket.peer.close()
        begin, end = await exchange(running, uid)
        assert begin["endpoint"] == "realtime" and begin["method"] == "GET" and begin["path"] == "/v1/realtime"
        assert end["outcome"] == "ok" and end["status"] == 101 and (end["backend"] == "a" or mode == "stock")
        assert end["chunks"] == 4 and end["response_bytes"] == 100_000 + 3 * len('{"type":"input","n":0}')
        assert [r["t"] for r in running.records() if r["uid"] == uid] == ["begin", "end"]
        assert await asyncio.to_thread(running.metric, "llmtap_requests_total", endpoint="realtime", outcome="ok") == 1
        assert await asyncio.to_thread(running.metric, "llmtap_requests_running") == 0

        uid, socket = await opened(running)
        socket.text("x")
        await socket.message()
        socket.peer.reset()
        assert (await exchange(running, uid))[1]["outcome"] == "client_abort"

        for how in ("dies", "fails"):
            uid, socket = await opened(running, f"/v1/realtime?how={how}&model=m")
            await socket.peer.rest()
            socket.peer.close()
            _, end = await exchange(running, uid)
            assert end["outcome"] == "upstream_error" and end["status"] == 101

        peer = await connect(running)
        peer.send(handshake("/v1/realtime?how=refused"))
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 403 ") and body == b'{"detail":"no"}'
        _, end = await exchange(running, header(head, "x-request-id"))
        assert end["outcome"] == "rejected" and end["status"] == 403
        peer.close()


async def test_the_gate_is_the_same_as_for_other_requests(tmp_path: Path) -> None:
    async with gateway(tmp_path, "lane") as running:
        refused = (("/v1/chat/completions", 400), ("/sleep", 404), ("/v1/realtime?model=unknown", 404), ("/v1/models", 200))
        for path, status in refused:
            peer = await connect(running)
            peer.send(handshake(path))
            got = await peer.rest()
            assert got.startswith(b"HTTP/1.1 %d " % status) and b"connection: close" in got, got
            peer.close()


async def test_the_end_of_the_gateway_ends_a_session(tmp_path: Path) -> None:
    async with gateway(tmp_path, "lane") as running:
        uid, socket = await opened(running)
        running.process.send_signal(signal.SIGTERM)
        assert await socket.closed() == (1001, "the gateway is shutting down")
        socket.peer.close()
        _, end = await exchange(running, uid)
        assert end["outcome"] == "lost" and end["error_message"] == "the gateway stopped"


TRANSCRIPT = [
    '{"type":"session.created","id":"sess-1"}',
    '{"type":"transcription.delta","delta":"to be "}',
    '{"type":"transcription.delta","delta":"or not"}',
    '{"type":"transcription.done","text":"to be or not","usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}',
]


@pytest.mark.parametrize("mode", ["lane", "stock"])
async def test_what_was_said_is_captured_and_stored(tmp_path: Path, mode: str) -> None:
    async with gateway(tmp_path, mode) as running:
        uid, socket = await opened(running)
        sent = [
            '{"type":"session.update","model":"m"}',
            '{"type":"input_audio_buffer.append","audio":"' + "A" * 100_000 + '"}',
            *TRANSCRIPT,  # the backend echoes
        ]
        for text in sent:
            socket.text(text)
            assert await socket.message() == text
        socket.binary(b"\0\1")
        await socket.message()
        socket.close(1000)
        await socket.closed()
        socket.peer.close()
        _, end = await exchange(running, uid)
        messages = end["messages"]
        assert [m["from"] for m in messages] == ["client", "server"] * 7 and "messages_dropped" not in end
        assert [m["text"] for m in messages if m["from"] == "client" and "truncated" not in m and "text" in m] == [
            sent[0],
            *TRANSCRIPT,
        ]
        assert messages[2]["truncated"] is True and messages[2]["bytes"] == len(sent[1]) and len(messages[2]["text"]) == 16 << 10
        assert messages[-1]["base64"] == "AAE=" and all(m["at_ms"] > 0 for m in messages)
        assert end["request_bytes"] == sum(map(len, sent)) + 2 == end["response_bytes"]
        assert end["summary"]["choices"][0]["content"] == "to be or not" and end["summary"]["model"] == "m"
        assert end["summary"]["usage"]["completion_tokens"] == 3 and end["ttft_ms"] > 0

    def stored() -> tuple[Any, ...]:
        ingest(tmp_path)
        with contextlib.closing(sqlite3.connect(tmp_path / "capture.db")) as conn:
            row = conn.execute(
                "SELECT e.request_bytes, e.model_response, r.reply FROM exchanges e JOIN requests r USING (uid) WHERE e.uid = ?",
                (uid,),
            ).fetchone()
            (n, large, last) = conn.execute(
                "SELECT count(*), max(bytes), (SELECT content FROM websocket_messages ORDER BY n DESC LIMIT 1) "
                "FROM websocket_messages"
            ).fetchone()
        return (*row, n, large, last)

    size = sum(map(len, sent)) + 2
    assert await asyncio.to_thread(stored) == (size, "m", "to be or not", 14, len(sent[1]), b"\0\1")
