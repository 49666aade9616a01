"""The launcher's end of the line to its gateways: asks them, tells them what it knows of backends, hears which one is wanted.

The protocol is in `llmtap.remote`. Every gateway process (`server.workers`) has a line of its own; a question goes to all.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmtap.core.errors import LlmtapError
from llmtap.core.sockets import MAX_LINE

ANSWER_S = 10.0


class Refused(LlmtapError):
    """A gateway says no; `str()` is its reason."""


def listen_private(path: Path) -> socket.socket:
    """A UNIX socket at `path` that only its owner can connect to. What an earlier run left there is replaced."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    sock.listen(128)
    sock.setblocking(False)
    return sock


class _Peer:
    """One gateway's line."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.asked: dict[int, asyncio.Future[Any]] = {}


class GatewayLink:
    """`start` listens, `close` ends it. `on_wanted(name)`: a request waits for that stopped backend."""

    def __init__(self, on_wanted: Callable[[str], None] = lambda name: None) -> None:
        self.on_wanted = on_wanted
        self._peers: list[_Peer] = []
        self._numbers = itertools.count(1)
        self._picture: Mapping[str, Any] = {}
        self._server: asyncio.Server | None = None
        self._came = asyncio.Event()

    async def start(self, path: Path) -> None:
        """Listen at `path`. Raises OSError."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listen_private(path), limit=MAX_LINE)

    async def close(self) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.writer.close()

    @property
    def gateways(self) -> int:
        """How many are connected."""
        return len(self._peers)

    async def connected(self, timeout_s: float = ANSWER_S) -> bool:
        """Wait until a gateway is there."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._came.wait(), timeout_s)
        return bool(self._peers)

    async def ask(self, do: str, **more: Any) -> list[Any]:
        """The answers of all gateways, one that is lost meanwhile left out. Raises Refused when one of them says no."""
        number = next(self._numbers)
        line = json.dumps({"id": number, "do": do, **more}).encode() + b"\n"
        futures: list[asyncio.Future[Any]] = []
        for peer in self._peers:
            future = peer.asked[number] = asyncio.get_running_loop().create_future()
            futures.append(future)
            peer.writer.write(line)
        if futures:
            await asyncio.wait(futures, timeout=ANSWER_S)
        for peer in self._peers:
            peer.asked.pop(number, None)
        answers = [future.result() for future in futures if future.done() and future.exception() is None]
        for answer in answers:
            if "error" in answer:
                raise Refused(str(answer["error"]))
        return [answer["value"] for answer in answers]

    async def show(self, picture: Mapping[str, Any]) -> None:
        """What is known of the backends from now on; also told to gateways that come later."""
        self._picture = picture
        await self.ask("picture", backends=picture)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(writer)
        writer.write(json.dumps({"id": 0, "do": "picture", "backends": self._picture}).encode() + b"\n")
        self._peers.append(peer)
        self._came.set()
        try:
            while line := await reader.readline():
                self._heard(peer, json.loads(line))
        except (OSError, ValueError):
            pass  # it connects again
        finally:
            self._peers.remove(peer)
            if not self._peers:
                self._came.clear()
            for future in peer.asked.values():
                if not future.done():
                    future.set_exception(ConnectionError("the gateway hung up"))
                    future.exception()  # nobody may be waiting any more
            writer.close()

    def _heard(self, peer: _Peer, message: dict[str, Any]) -> None:
        if "wanted" in message:
            self.on_wanted(str(message["wanted"]))
            return
        future = peer.asked.pop(message.get("id", 0), None)
        if future is not None and not future.done():
            future.set_result(message)
