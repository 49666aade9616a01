"""`on_client_disconnect`: what happens to a generation whose client has left, backend by backend."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.lane import Peer, response, turn, until, upstream
from support.thread import in_thread

pytestmark = pytest.mark.integration
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Engine:
    """Streams one word, and the rest when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.asked = asyncio.Event()
        self.left = 0
        self.finished = 0

    async def __call__(self, peer: Peer) -> None:
        while True:
            head = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), None)
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            await peer.exactly(int(length or 0))
            if b"/v1/chat" not in head:
                peer.send(response(b'{"object":"list","data":[{"id":"m","object":"model"}]}'))
                continue
            peer.send(HEAD + event("one"))
            self.asked.set()
            gone = asyncio.ensure_future(peer.reader.read(1))
            waiting = asyncio.ensure_future(self.go_on.wait())
            await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if gone.done():
                self.left += 1
                return
            gone.cancel()
            peer.send(event(" two", "stop") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            await peer.flush()
            self.finished += 1
            return


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str, reason: str | None = None) -> bytes:
    finish = f'"{reason}"' if reason else "null"
    choice = f'{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{finish}}}'
    return chunk(f'data: {{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{choice}]}}\n\n'.encode())


async def ask_and_leave(gateway: Gateway, engine: Engine) -> None:
    peer = Peer(*await asyncio.open_connection("127.0.0.1", gateway.port))
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"count"}]}'
    peer.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await peer.until(b"one")
    peer.reset()


def config(port: int, what: str) -> dict[str, object]:
    backend = {"name": "a", "url": f"http://127.0.0.1:{port}", "on_client_disconnect": what}
    return {"backends": [backend], "server": {"drain_timeout_s": 20}}


@pytest.mark.parametrize("what", ["abort", "drain"])
async def test_the_backend_is_told_or_may_finish(tmp_path: Path, what: str) -> None:
    engine = Engine()
    async with (
        upstream(engine) as up,
        in_thread(running_gateway(tmp_path, config(up.port, what), master=True)) as gateway,
    ):
        await asyncio.to_thread(wait_up, gateway)
        await ask_and_leave(gateway, engine)
        if what == "abort":
            await until(lambda: engine.left == 1, "the backend to be left")
        else:
            for _ in range(20):
                await turn()
            assert engine.left == 0
            assert await asyncio.to_thread(gateway.metric, "llmtap_requests_running") == 1
            engine.go_on.set()
            await until(lambda: engine.finished == 1, "the backend to finish")
        _, end = await asyncio.to_thread(gateway.last)
        assert end["outcome"] == "client_abort" and end["status"] == 499
        assert end["summary"]["choices"][0]["content"] == ("one" if what == "abort" else "one two")
        assert await asyncio.to_thread(gateway.metric, "llmtap_requests_running") == 0


async def test_a_stop_waits_for_what_may_finish(tmp_path: Path) -> None:
    engine = Engine()
    async with (
        upstream(engine) as up,
        in_thread(running_gateway(tmp_path, config(up.port, "drain"), master=True)) as gateway,
    ):
        await asyncio.to_thread(wait_up, gateway)
        await ask_and_leave(gateway, engine)
        gateway.process.send_signal(signal.SIGTERM)
        for _ in range(20):
            await turn()
        assert gateway.process.poll() is None and engine.left == 0
        engine.go_on.set()
        assert await asyncio.to_thread(gateway.process.wait, 10) == 0
        _, end = await asyncio.to_thread(gateway.last)
        assert end["summary"]["choices"][0]["content"] == "one two" and end["outcome"] == "client_abort"
