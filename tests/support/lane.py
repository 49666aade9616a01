"""The lane inside this test's event loop, and backends that do exactly what a test says.

`running_lane` starts a real mitmproxy `Master` with the addons a proxy needs and a `gateway` mode on a free port. `FakeUpstream`
is a raw socket server: every connection is handed to the test's own script, which sees bytes and answers bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import ctx, http, options
from mitmproxy.addons import core, intercept, next_layer, proxyserver
from mitmproxy.addons import save as save_addon
from mitmproxy.master import Master

from llmtap.core.errors import ApiError, dialect_of, error_body
from llmtap.core.plan import Plan, Target
from llmtap.lane import Lane, LaneLimits, default_mode, install

Limits = LaneLimits

Script = Callable[["Peer"], Awaitable[None]]
PATIENCE_S = 10.0


class Peer:
    """One connection, seen from the test: reads requests or responses, writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """Up to the empty line."""
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)

    async def exactly(self, n: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(n), PATIENCE_S)

    async def until(self, mark: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), PATIENCE_S)

    async def rest(self) -> bytes:
        """Everything until the other side closes (or resets)."""
        out = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(self.reader.read(65536), PATIENCE_S):
                out += data
        return out

    async def message(self) -> tuple[bytes, bytes]:
        """(head, body) of one message that has a content-length or is chunked (then the body is raw chunks)."""
        head = await self.head()
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            body = b""
            while True:
                line = await self.until(b"\r\n")
                body += line
                size = int(line.split(b";")[0], 16)
                if size == 0:
                    while (trailer := await self.until(b"\r\n")) != b"\r\n":
                        body += trailer
                    return head, body + b"\r\n"
                body += await self.exactly(size + 2)
        if b"content-length:" in lower:
            return head, await self.exactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
        return head, b""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def flush(self) -> None:
        await asyncio.wait_for(self.writer.drain(), PATIENCE_S)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """RST, not FIN."""
        self.writer.transport.abort()


class FakeUpstream:
    """A backend that runs `script` for every connection. `requests`: heads seen through `serve`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, path: str | None = None, ssl: Any = None) -> None:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._connected, path)
        else:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=ssl)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        peer = Peer(reader, writer)
        self.peers.append(peer)
        try:
            await self.script(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the lane closed its connection: for most scripts the normal end
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        self._server.close()
        for _ in range(5):  # a connection that was accepted a moment ago becomes a task of ours
            await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for peer in self.peers:
            with contextlib.suppress(AttributeError):  # of an asyncio transport whose connection is already lost
                peer.writer.transport.abort()
        assert not self.failures, self.failures

    def target(self, name: str = "a", **more: Any) -> Target:
        return Target(name, "127.0.0.1", self.port, **more)


@contextlib.asynccontextmanager
async def upstream(script: Script, **how: Any) -> AsyncIterator[FakeUpstream]:
    fake = FakeUpstream(script)
    await fake.start(**how)
    try:
        yield fake
    finally:
        await fake.stop()


def response(body: bytes = b"{}", status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (status, headers, len(body), body)


async def echo(peer: Peer) -> None:
    """Answers every request with a small body, for ever."""
    while True:
        await peer.message()
        peer.send(response(b'{"ok":1}'))


class Recorder:
    """Notes every hook, and gives flows the plan a test wants."""

    name = "test.recorder"

    def __init__(self) -> None:
        self.events: list[str] = []
        self.flows: list[http.HTTPFlow] = []
        self.plans: WeakKeyDictionary[http.HTTPFlow, Plan] = WeakKeyDictionary()
        self.candidates: list[Target] = []
        self.plan_options: dict[str, Any] = {}
        self.failures: list[tuple[str, str]] = []
        self.changed = asyncio.Event()

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()

    async def seen(self, event: str, times: int = 1) -> None:
        """Until `event` has been noted that often."""
        async with asyncio.timeout(PATIENCE_S):
            while self.events.count(event) < times:
                self.changed.clear()
                await self.changed.wait()

    def plan(self) -> Plan:
        """Of the last flow."""
        return self.plans[self.flows[-1]]

    def flow_events(self) -> list[str]:
        return [e for e in self.events if "_" not in e]

    def client_connected(self, client: Any) -> None:
        self._note("client_connected")

    def client_disconnected(self, client: Any) -> None:
        self._note("client_disconnected")

    def server_connect(self, data: Any) -> None:
        self._note("server_connect")

    def server_connected(self, data: Any) -> None:
        self._note("server_connected")

    def server_connect_error(self, data: Any) -> None:
        self._note("server_connect_error")

    def server_disconnected(self, data: Any) -> None:
        self._note("server_disconnected")

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self.flows.append(flow)
        self._note("requestheaders")

    def request(self, flow: http.HTTPFlow) -> None:
        if self.candidates:
            self.plans[flow] = Plan(
                list(self.candidates), on_failure=lambda t, r: self.failures.append((t.backend, r)), **self.plan_options
            )
        self._note("request")

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        self._note("responseheaders")

    def response(self, flow: http.HTTPFlow) -> None:
        self._note("response")

    def error(self, flow: http.HTTPFlow) -> None:
        self._note("error")


class Streamer:
    """Streams every response through a callable that notes what it saw."""

    name = "test.streamer"

    def __init__(self, change: Callable[[bytes], Any] = lambda data: data) -> None:
        self.seen: list[bytes] = []
        self.change = change

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        assert flow.response is not None
        flow.response.stream = self

    def __call__(self, data: bytes) -> Any:
        self.seen.append(data)
        return self.change(data)

    async def more(self) -> None:
        """Until another chunk has come."""
        seen = len(self.seen)
        await until(lambda: len(self.seen) > seen, "another chunk")


def answer(flow: http.HTTPFlow, error: ApiError) -> http.Response:
    made = http.Response.make(
        error.status, error_body(error, dialect_of(flow.request.path)), {"content-type": "application/json"}
    )
    made.headers["x-answered"] = "yes"
    return made


class LaneHandle:
    """A running lane. `rec` is its recorder."""

    def __init__(self, master: Master, lane: Lane, rec: Recorder, port: int) -> None:
        self.master = master
        self.lane = lane
        self.rec = rec
        self.port = port
        self._peers: list[Peer] = []

    async def connect(self, **how: Any) -> Peer:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", how.pop("port", self.port), **how))
        self._peers.append(peer)
        return peer

    async def ask(self, data: bytes) -> tuple[bytes, bytes]:
        """One request on a connection of its own; (head, body) of the answer."""
        peer = await self.connect()
        peer.send(data)
        got = await peer.message()
        peer.close()
        return got

    def close(self) -> None:
        for peer in self._peers:
            peer.writer.transport.abort()


@contextlib.asynccontextmanager
async def running_lane(
    *addons: Any, limits: LaneLimits | None = None, default: int | None = None, eager: bool = True, **opts: Any
) -> AsyncIterator[LaneHandle]:
    """A mitmproxy with the gateway mode on a free port. `default`: port of the server for requests without a plan."""
    loop = asyncio.get_running_loop()
    factory, handler = loop.get_task_factory(), loop.get_exception_handler()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    master = Master(options.Options(**opts))
    rec = Recorder()
    ps = proxyserver.Proxyserver()
    if eager:
        loop.set_task_factory(asyncio.eager_task_factory)
    lane: Lane | None = None
    handle: LaneHandle | None = None
    try:
        master.addons.add(core.Core(), ps, next_layer.NextLayer(), intercept.Intercept(), save_addon.Save(), rec, *addons)
        lane = install(plans=rec.plans, answer=answer, limits=limits, master=master)
        target = f"http://127.0.0.1:{default}" if default is not None else None
        master.options.update(mode=[default_mode("127.0.0.1", 0, target)])
        assert await ps.setup_servers()
        await master.running()
        handle = LaneHandle(master, lane, rec, ps.listen_addrs()[0][1])
        yield handle
    finally:
        if handle is not None:
            handle.close()
        if lane is not None:
            await lane.drain(0)
            for instance in ps.servers:
                if instance.is_running:
                    await instance.stop()
        await master.done()
        loop.set_task_factory(factory)
        loop.set_exception_handler(handler)
    assert not unhandled, unhandled


def get(path: str = "/v1/models", extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gateway\r\n{extra}\r\n".encode()


def post(body: bytes, path: str = "/v1/chat/completions", extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


async def until(condition: Callable[[], Any], what: str = "the condition") -> None:
    """Until `condition` holds, looked at in every turn of the loop."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE_S
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"waited in vain for {what}")
        await turn()


async def turn() -> None:
    """Let everything else run for a moment."""
    loop = asyncio.get_running_loop()
    turned = loop.create_future()
    loop.call_later(0.005, turned.set_result, None)
    await turned


__all__ = [
    "FakeUpstream",
    "LaneHandle",
    "Limits",
    "Peer",
    "Recorder",
    "Streamer",
    "answer",
    "ctx",
    "echo",
    "get",
    "post",
    "response",
    "running_lane",
    "turn",
    "until",
    "upstream",
]
