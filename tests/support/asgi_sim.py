"""The simulated server's ASGI application without a socket: requests by plain calls, the connection a recording double."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmtap_launcher.sim.app import create_app
from llmtap_launcher.sim.simulation import Settings, Simulation


class FakeConnection:
    """What `llmtap_launcher.sim.connection.Connection` offers, kept in lists. `acts`: close, reset."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.raw = b""
        self.acts: list[str] = []
        self.blocked = False
        self._lost = asyncio.get_running_loop().create_future()
        self._callbacks: set[Callable[[], None]] = set()

    @property
    def lost(self) -> bool:
        return self._lost.done()

    def when_lost(self, callback: Callable[[], None]) -> None:
        self._callbacks.add(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        self._callbacks.discard(callback)

    async def wait_lost(self, seconds: float = float("inf")) -> bool:
        await asyncio.wait((self._lost,), timeout=None if seconds == float("inf") else seconds)
        return self.lost

    def write_chunk(self, data: bytes) -> None:
        if not self.acts:
            self.chunks.append(data)

    def write_raw(self, data: bytes) -> None:
        self.raw += data

    def close(self) -> None:
        self.acts.append("close")
        self.lose()

    def reset(self) -> None:
        self.acts.append("reset")
        self.lose()

    def lose(self) -> None:
        """The peer is gone."""
        if not self._lost.done():
            self._lost.set_result(None)
        for callback in list(self._callbacks):
            callback()


@dataclass
class Reply:
    """What came back. `chunks` are the events of a stream; `finished`: the body was ended properly."""

    connection: FakeConnection
    status: int | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    finished: bool = False

    @property
    def chunks(self) -> list[bytes]:
        return self.connection.chunks

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The JSON of the stream's events, `[DONE]` left out."""
        return [json.loads(chunk[6:]) for chunk in self.chunks if chunk != b"data: [DONE]\n\n"]


class SimApp:
    """One simulation and its application; instant by default."""

    def __init__(self, **settings: Any) -> None:
        defaults: dict[str, Any] = {"models": ("tiny",), "max_model_len": 2048, "tokens_per_second": 0, "ttft_ms": 0}
        self.sim = Simulation.create(Settings(**{**defaults, **settings}), asyncio.get_running_loop())
        self.app = create_app(self.sim)

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        connection: FakeConnection | None = None,
    ) -> Reply:
        """One request; `body` is bytes or becomes JSON."""
        reply = Reply(connection or FakeConnection())
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items()],
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "llmtap.connection": reply.connection,
        }
        inbox = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return inbox.pop() if inbox else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
            else:
                reply.body += message.get("body", b"")
                reply.finished = not message.get("more_body", False)

        await self.app(scope, receive, send)
        return reply

    async def chat(self, content: str = "Hello", headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        """A chat completion of one user message."""
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return await self.request("POST", "/v1/chat/completions", body, headers)

    async def complete(self, prompt: object = "Hello", **fields: Any) -> Reply:
        """A text completion."""
        return await self.request("POST", "/v1/completions", {"prompt": prompt, **fields})
