"""Audio uploads through a real gateway process: they go on as they come, to the backend that serves the form's model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.lane import PATIENCE_S, FakeUpstream, Peer, Script, response, until, upstream

pytestmark = pytest.mark.integration
AUDIO = "/v1/audio/transcriptions"


class Engine:
    """As much of a vLLM as is needed: healthy, with one model, and every transcription is the size of its request."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.received = 0

    async def __call__(self, peer: Peer) -> None:
        while True:
            head = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), None)
            path = head.split()[1]
            if path == b"/v1/models":
                peer.send(response(b'{"object":"list","data":[{"id":"%b","object":"model"}]}' % self.model.encode()))
            elif path.startswith((b"/v1/audio", b"/upload")):
                await self._body(peer, head.lower())
                peer.send(response(b'{"text":"%b heard %d bytes"}' % (self.model.encode(), self.received)))
            else:
                peer.send(response(b""))

    async def _body(self, peer: Peer, head: bytes) -> None:
        self.received = 0
        if b"chunked" in head:
            while size := int((await peer.until(b"\r\n")).split(b";")[0], 16):
                await peer.exactly(size + 2)
                self.received += size
            await peer.until(b"\r\n")
            return
        left = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        while left and (data := await asyncio.wait_for(peer.reader.read(min(left, 1 << 20)), PATIENCE_S)):
            left -= len(data)
            self.received += len(data)


@contextlib.asynccontextmanager
async def gateway(folder: Path, *scripts: Script, master: bool = True, **config: Any) -> AsyncIterator[Gateway]:
    async with contextlib.AsyncExitStack() as fakes:
        ups: list[FakeUpstream] = [await fakes.enter_async_context(upstream(script)) for script in scripts]
        config["backends"] = [{"name": "ab"[i], "url": f"http://127.0.0.1:{up.port}"} for i, up in enumerate(ups)]
        with contextlib.ExitStack() as stack:
            how = {"master": True} if master else {"mode": f"reverse:http://127.0.0.1:{ups[0].port}"}
            start: Callable[[], Gateway] = lambda: stack.enter_context(running_gateway(folder, config, **how))  # noqa: E731
            running = await asyncio.to_thread(start)
            await asyncio.to_thread(wait_up, running)
            try:
                yield running
            finally:
                for peer in _PEERS.pop(running.port, ()):
                    peer.writer.transport.abort()
                await asyncio.to_thread(stack.close)


def field(name: str, value: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def file(content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + content + b"\r\n"


FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"


def head(size: int, path: str = AUDIO) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: g\r\n".encode() + FORM + b"Content-Length: %d\r\n\r\n" % size


#: by the gateway's port: closed with it
_PEERS: dict[int, list[Peer]] = {}


async def connect(gateway: Gateway) -> Peer:
    peer = Peer(*await asyncio.open_connection("127.0.0.1", gateway.port))
    _PEERS.setdefault(gateway.port, []).append(peer)
    return peer


async def test_the_model_decides_and_nothing_waits_for_the_file(tmp_path: Path) -> None:
    small, large = Engine("small"), Engine("large")
    async with gateway(tmp_path, small, large, server={"max_body_mb": 1}) as running:
        for engine in (small, large):
            form = field("model", engine.model) + file(b"x" * (3 << 20)) + b"--b--\r\n"  # more than is held in memory
            peer = await connect(running)
            peer.send(head(len(form)) + form[:200_000])
            await until(lambda engine=engine: engine.received >= 199_000, "the first part of the file")
            peer.send(form[200_000:])
            answer, body = await peer.message()
            assert answer.startswith(b"HTTP/1.1 200 ") and body == b'{"text":"%b heard %d bytes"}' % (
                engine.model.encode(),
                len(form),
            )
            begin, end = await asyncio.to_thread(running.last)
            assert begin["model"] == engine.model and begin["endpoint"] == "transcriptions"
            assert begin["body_dropped"] == "streamed" and "body" not in begin and begin["request_bytes"] == 0
            assert end["request_bytes"] == len(form) and end["outcome"] == "ok" and end["backend"] == "ab"[engine is large]


async def test_a_file_before_the_model(tmp_path: Path) -> None:
    small, large = Engine("small"), Engine("large")
    async with gateway(tmp_path, small, large, server={"max_body_mb": 1}) as running:
        form = file(b"x" * 700_000) + field("model", "large") + b"--b--\r\n"
        peer = await connect(running)
        peer.send(head(len(form)) + form[:300_000])
        peer.send(form[300_000:])
        assert b"large heard" in (await peer.message())[1]
        form = file(b"x" * (2 << 20)) + field("model", "large") + b"--b--\r\n"
        peer.send(head(len(form)) + form[:300_000])
        peer.send(form[300_000:])
        answer, body = await peer.message()
        assert answer.startswith(b"HTTP/1.1 413 ") and b"before the file" in body
        peer = await connect(running)
        form = field("model", "nobody") + file(b"x" * 1000) + b"--b--\r\n"
        peer.send(head(len(form)) + form[:200])
        answer, body = await peer.message()
        assert answer.startswith(b"HTTP/1.1 404 ") and b"model_not_found" in body


async def test_the_official_client(tmp_path: Path) -> None:
    small, large = Engine("small"), Engine("large")
    async with (
        gateway(tmp_path, small, large) as running,
        openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as sdk,
    ):
        for name in ("large", "small"):
            heard = await sdk.audio.transcriptions.create(model=name, file=("a.wav", b"RIFF" * 100_000))
            assert heard.text.startswith(f"{name} heard 40")


async def test_a_large_body_for_a_path_nobody_knows(tmp_path: Path) -> None:
    engine = Engine("m")
    async with gateway(tmp_path, engine, server={"max_body_mb": 1}, routing={"allow_paths": ["/upload"]}) as running:
        peer = await connect(running)
        peer.send(head(3 << 20, "/upload") + b"x" * 100_000)
        await until(lambda: engine.received >= 100_000, "the beginning")
        peer.send(b"x" * ((3 << 20) - 100_000))
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        begin, end = await asyncio.to_thread(running.last)
        assert begin["body_dropped"] == "streamed" and end["request_bytes"] == 3 << 20
        peer.send(head(10, "/upload") + b"small")
        peer.send(b" body")
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        begin, _ = await asyncio.to_thread(running.last)
        assert begin["body"] == {"text": "small body"} and begin["request_bytes"] == 10, "a small one is captured"


async def test_a_client_that_leaves_in_the_middle_is_captured(tmp_path: Path) -> None:
    engine = Engine("m")
    async with gateway(tmp_path, engine) as running:
        peer = await connect(running)
        form = field("model", "m") + file(b"x" * 1_000_000)
        peer.send(head(len(form)) + form[:300_000])
        await until(lambda: engine.received >= 300_000, "the beginning")
        peer.reset()
        begin, end = await asyncio.to_thread(running.last)
        assert end["outcome"] == "client_abort" and end["request_bytes"] == 300_000 and begin["model"] == "m"


async def test_a_stock_mode_holds_the_whole_body(tmp_path: Path) -> None:
    engine = Engine("m")
    async with gateway(tmp_path, engine, master=False) as running:
        form = field("model", "m") + file(b"x" * 300_000) + b"--b--\r\n"
        peer = await connect(running)
        peer.send(head(len(form)) + form[:100_000])
        peer.send(form[100_000:])
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        begin, _ = await asyncio.to_thread(running.last)
        assert begin["model"] == "m" and begin["request_bytes"] == len(form)
