"""Websockets through the lane: a real client on one side, a scripted backend on the other."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import pytest
from mitmproxy import http, io, websocket
from wsproto import events

from llmtap.lane import uvloop_loop_factory
from support.lane import Limits, Peer, get, post, response, running_lane, until, upstream
from support.lane import echo as http_echo
from support.websocket import DEFLATE, LOST, Socket, accept, echo, handshake, header, open_socket, serving

pytestmark = pytest.mark.integration
HOOKS = ["requestheaders", "request", "responseheaders", "response", "websocket_start"]


class Watcher:
    """Notes the websocket hooks; `change` may do to a message what an addon does."""

    name = "test.watcher"

    def __init__(self, change: Any = lambda flow, message: None) -> None:
        self.hooks: list[str] = []
        self.messages: list[tuple[bool, bytes]] = []
        self.change = change
        self.flow: http.HTTPFlow | None = None

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self.flow = flow
        self.hooks.append("requestheaders")

    def request(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("request")

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        assert flow.websocket is None
        self.hooks.append("responseheaders")

    def response(self, flow: http.HTTPFlow) -> None:
        assert flow.websocket is not None or flow.response.status_code != 101  # type: ignore[union-attr]
        self.hooks.append("response")

    def websocket_start(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("websocket_start")

    def websocket_message(self, flow: http.HTTPFlow) -> Any:
        assert flow.websocket is not None
        message = flow.websocket.messages[-1]
        self.messages.append((message.from_client, message.content))
        return self.change(flow, message)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        assert flow.live or flow.error is not None
        self.hooks.append("websocket_end")

    def error(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("error")

    async def ended(self) -> websocket.WebSocketData:
        """Until the websocket's end, and the flow's; what is known of it."""
        await until(lambda: "websocket_end" in self.hooks and self.flow is not None and not self.flow.live, "the end")
        assert self.hooks == [*HOOKS, "websocket_end"]
        assert self.flow is not None and self.flow.websocket is not None
        return self.flow.websocket


@pytest.mark.parametrize("extension", ["", DEFLATE], ids=["plain", "deflate"])
async def test_messages_go_both_ways_as_they_are(extension: str) -> None:
    watcher = Watcher()
    async with upstream(serving(echo)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect(), extension=extension)
        large = "äöü-" * 150_000
        sent: list[list[Any]] = [
            ["hello"],
            [""],
            ["in ", "three ", "frames ä"],
            [b"\x00\xff" * 10],
            [b"", b"1", b"", b"2"],
            [large],
            [bytes(range(256)) * 4096],
            ["x" * 70_000, "y" * 70_000],
        ]
        for frames in sent:
            (socket.text if isinstance(frames[0], str) else socket.binary)(*frames)
            got = await socket.frames()
            assert got == frames if not extension else got[0][:0].join(got) == frames[0][:0].join(frames)
        socket.send(events.Ping(b"are you there"))
        pong = await socket.event()
        assert isinstance(pong, events.Pong) and bytes(pong.payload) == b"are you there"
        socket.close(4001, "that was all")
        assert await socket.closed() == (4001, "that was all")
        data = await watcher.ended()
        assert (data.closed_by_client, data.close_code, data.close_reason) == (True, 4001, "that was all")
        contents = [b"".join(f.encode() if isinstance(f, str) else f for f in frames) for frames in sent]
        assert watcher.messages == [(by, content) for content in contents for by in (True, False)]
        await until(lambda: lane.lane.connections == 0 and lane.lane.pool.open_count == 0, "both connections' end")


async def test_a_thousand_messages_in_order_each_way_at_once() -> None:
    async def flood(socket: Socket) -> None:
        for n in range(1000):
            socket.text(f"s{n}")
        got = [await socket.message() for _ in range(1000)]
        assert got == [f"c{n}" for n in range(1000)]
        socket.close(1000)
        await socket.event()

    watcher = Watcher()
    async with upstream(serving(flood)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        for n in range(1000):
            socket.text(f"c{n}")
        assert [await socket.message() for _ in range(1000)] == [f"s{n}" for n in range(1000)]
        assert await socket.closed() == (1000, "")
        data = await watcher.ended()
        assert data.closed_by_client is False and len(watcher.messages) == 2000
        assert len(data.messages) == lane.lane.limits.kept_messages
        assert data.messages[-1].content in (b"c999", b"s999")


async def test_kept_messages_are_bounded_in_bytes_too() -> None:
    watcher = Watcher()
    async with upstream(serving(echo)) as up, running_lane(watcher, limits=Limits(kept_bytes=1000)) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        for size in (400, 400, 5000, 3):
            socket.binary(b"x" * size)
            await socket.message()
        assert watcher.flow is not None and watcher.flow.websocket is not None
        assert [len(m.content) for m in watcher.flow.websocket.messages] == [3, 3]


@pytest.mark.parametrize("code", [1000, 1001, 1011, 4999])
@pytest.mark.parametrize("by_client", [True, False])
async def test_close_codes_both_ways(code: int, by_client: bool) -> None:
    got: list[tuple[int, str | None]] = []

    async def closes(socket: Socket) -> None:
        socket.close(code, "why")
        await socket.event()

    async def is_closed(socket: Socket) -> None:
        got.append(await socket.closed())

    watcher = Watcher()
    async with upstream(serving(is_closed if by_client else closes)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        if by_client:
            socket.close(code, "why")
        assert await socket.closed() == (code, "why")
        data = await watcher.ended()
        assert (data.closed_by_client, data.close_code, data.close_reason) == (by_client, code, "why")
        assert not by_client or got == [(code, "why")]


async def test_a_close_without_a_code_stays_without() -> None:
    """wsproto's own `send` would put 1000 in."""

    async def script(socket: Socket) -> None:
        assert (await socket.closed())[0] == 1005

    watcher = Watcher()
    async with upstream(serving(script)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        socket.peer.send(b"\x88\x80\0\0\0\0")
        assert await socket.peer.exactly(2) == b"\x88\x00"
        assert (await watcher.ended()).close_code == 1005


async def test_a_client_that_is_gone_closes_the_backend() -> None:
    for how in ("reset", "close"):
        gone: asyncio.Future[tuple[int, str | None]] = asyncio.get_running_loop().create_future()

        async def script(socket: Socket, gone: asyncio.Future[tuple[int, str | None]] = gone) -> None:
            await socket.message()
            gone.set_result(await socket.closed())

        watcher = Watcher()
        async with upstream(serving(script)) as up, running_lane(watcher) as lane:
            lane.rec.candidates = [up.target()]
            socket = await open_socket(await lane.connect())
            socket.text("a")
            await until(lambda w=watcher: w.messages, "the message")
            getattr(socket.peer, how)()
            assert await asyncio.wait_for(gone, 5) == (1001, "the client closed the connection")
            data = await watcher.ended()
            assert data.closed_by_client is True and data.close_code == 1006
            await until(lambda lane=lane: lane.lane.pool.open_count == 0, "the backend's connection to be closed")


async def test_a_backend_that_is_gone_closes_the_client() -> None:
    async def script(socket: Socket) -> None:
        socket.text("last words")
        await socket.peer.flush()

    watcher = Watcher()
    async with upstream(serving(script)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        assert await socket.message() == "last words"
        assert await socket.closed() == (1011, "the backend closed the connection")
        data = await watcher.ended()
        assert data.closed_by_client is False and data.close_code == 1006


async def test_an_addon_changes_drops_and_waits() -> None:
    async def change(flow: http.HTTPFlow, message: websocket.WebSocketMessage) -> None:
        await asyncio.sleep(0)
        if message.content == b"drop me":
            message.drop()
        elif message.from_client:
            message.content = message.content.replace(b"secret", "•••".encode())

    watcher = Watcher(change)
    async with upstream(serving(echo)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        socket.text("my ", "secret", " key")
        socket.text("drop me")
        socket.binary(b"secret" * 100_000)
        socket.text("end")
        assert await socket.frames() == ["my ••• key"]
        assert await socket.message() == ("•••" * 100_000).encode()
        assert await socket.message() == "end"


async def test_an_intercepted_message_waits_until_it_is_resumed_and_a_kill_ends_it_all() -> None:
    def hold(flow: http.HTTPFlow, message: websocket.WebSocketMessage) -> None:
        if message.content in (b"held", b"fatal"):
            flow.intercept()

    watcher = Watcher(hold)
    async with upstream(serving(echo)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        socket.text("held")
        await until(lambda: watcher.flow is not None and watcher.flow.intercepted, "the hold")
        assert watcher.flow is not None and watcher.flow.websocket is not None
        watcher.flow.websocket.messages[-1].text = "edited"
        watcher.flow.resume()
        assert await socket.message() == "edited"
        socket.text("fatal")
        await until(lambda: watcher.flow is not None and watcher.flow.intercepted, "the hold")
        watcher.flow.kill()
        assert await socket.event() is LOST
        await watcher.ended()
        await until(lambda: lane.lane.pool.open_count == 0, "the backend's connection to be closed")


async def test_a_kill_while_nothing_happens_ends_it() -> None:
    watcher = Watcher()
    async with upstream(serving(echo)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        assert watcher.flow is not None
        watcher.flow.kill()
        assert await socket.event() is LOST
        await watcher.ended()


async def test_messages_can_be_injected() -> None:
    watcher = Watcher()
    async with upstream(serving(echo)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        socket.text("first")
        assert await socket.message() == "first"
        lane.master.commands.call("inject.websocket", watcher.flow, False, b"from nowhere", True)
        assert await socket.message() == "from nowhere"
        lane.master.commands.call("inject.websocket", watcher.flow, True, b"\xff", False)
        assert await socket.message() == b"\xff"
        assert watcher.flow is not None and watcher.flow.websocket is not None
        assert [m.injected for m in watcher.flow.websocket.messages] == [False, False, True, False, True]


async def test_bytes_ahead_of_the_other_sides_head_are_not_lost() -> None:
    async def script(peer: Peer) -> None:
        head = await peer.head()
        socket = Socket(peer, False)
        greeting = bytes(Socket(peer, False).ws.send(events.TextMessage("welcome")))
        from wsproto.utilities import generate_accept_token

        token = generate_accept_token(header(head, "sec-websocket-key").encode())
        peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: "
            + (token if isinstance(token, bytes) else token.encode())
            + b"\r\n\r\n"
            + greeting
        )
        assert await socket.message() == "early"
        socket.text("got it")
        await socket.closed()

    async with upstream(script) as up, running_lane(Watcher()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        request = handshake()
        early = bytes(Socket(peer, True).ws.send(events.TextMessage("early")))
        socket = await open_socket(peer, request + early)
        assert await socket.message() == "welcome" and await socket.message() == "got it"
        socket.close()
        await socket.closed()


async def test_after_a_pipelined_request() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(response(b"1"))
        await echo((await accept(peer))[1])

    async with upstream(script) as up, running_lane(Watcher()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        request = handshake()
        early = bytes(Socket(peer, True).ws.send(events.TextMessage("early")))
        peer.send(post(b"{}") + request + early)
        assert (await peer.message())[1] == b"1"
        assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
        assert await Socket(peer, True).message() == "early"


async def test_only_what_is_understood_is_offered_and_the_backends_key_goes_along() -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        head, socket = await accept(peer)
        heads.append(head)
        await echo(socket)

    async with upstream(script) as up, running_lane(Watcher()) as lane:
        lane.rec.candidates = [up.target(host_header=b"backend", headers=((b"authorization", b"Bearer k"),))]
        offer = "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits, x-other"
        socket = await open_socket(await lane.connect(), handshake(extension=offer, more="X-Own: 1\r\n"))
        socket.text("compressed " * 1000)
        assert await socket.message() == "compressed " * 1000
        (head,) = heads
        assert header(head, "sec-websocket-extensions") == "permessage-deflate; client_max_window_bits"
        assert header(head, "authorization") == "Bearer k" and header(head, "host") == "backend" and header(head, "x-own") == "1"


# ---- a backend that does not switch


async def test_another_answer_than_101_passes_through() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(response(b'{"error":"no"}', b"403 Forbidden", b"x-why: y\r\n"))
        await peer.rest()

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(handshake() + b"not http")
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n") and body == b'{"error":"no"}' and b"connection: close" in head
        assert await peer.rest() == b""
        assert lane.rec.flow_events() == ["requestheaders", "request", "responseheaders", "response"]
        assert lane.rec.flows[0].websocket is None


async def test_candidates_are_tried_until_one_switches() -> None:
    async def die(peer: Peer) -> None:
        await peer.head()

    async def busy(peer: Peer) -> None:
        await peer.head()
        peer.send(response(b"busy", b"503 Service Unavailable"))
        await peer.rest()

    watcher = Watcher()
    async with upstream(die) as a, upstream(busy) as b, upstream(serving(echo)) as c, running_lane(watcher) as lane:
        lane.rec.candidates = [a.target("a"), b.target("b"), c.target("c")]
        socket = await open_socket(await lane.connect())
        socket.text("hi")
        assert await socket.message() == "hi"
        assert lane.rec.failures == [("a", "closed"), ("b", "status")] and lane.rec.plan().attempts == 3
        socket.close()
        await socket.closed()
        await watcher.ended()


BAD_101 = {
    "no upgrade": b"Connection: upgrade\r\n",
    "no connection": b"Upgrade: websocket\r\n",
    "other protocol": b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    "a body": b"Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 3\r\n",
    "chunked": b"Upgrade: websocket\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n",
    "extension": b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Extensions: x-mux\r\n",
    "extension parameter": b"Upgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99\r\n",
}


@pytest.mark.parametrize("headers", BAD_101.values(), ids=BAD_101.keys())
async def test_a_101_that_is_no_websocket_is_a_bad_gateway(headers: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\n" + headers + b"\r\n")
        await peer.rest()

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(handshake())
        assert (await peer.message())[0].startswith(b"HTTP/1.1 502 ")
        assert lane.rec.flow_events()[-1] == "error" and lane.rec.flow_events().count("error") == 1
        assert "response" not in lane.rec.events
        await until(lambda: lane.lane.pool.open_count == 0, "the backend's connection to be closed")


@pytest.mark.parametrize("replace", [True, False])
async def test_an_addon_may_refuse_the_switch(replace: bool) -> None:
    class Refuse:
        name = "test.refuse"
        ended = 0

        def response(self, flow: http.HTTPFlow) -> None:
            if replace:
                flow.response = http.Response.make(403, b"no")
            else:
                flow.kill()

        def websocket_end(self, flow: http.HTTPFlow) -> None:
            self.ended += 1

    refuse = Refuse()
    async with upstream(serving(echo)) as up, running_lane(refuse) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(handshake())
        got = await peer.rest()
        assert got.startswith(b"HTTP/1.1 403 ") if replace else got == b""
        assert refuse.ended == 1 and "error" not in lane.rec.events
        await until(lambda: lane.lane.pool.open_count == 0, "the backend's connection to be closed")


# ---- rules and limits


@pytest.mark.parametrize(
    "request_",
    [
        post(b"{}", extra="Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        get(extra="Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n"),
        get(extra="Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nContent-Length: 2\r\n") + b"ab",
        get(extra="Connection: upgrade\r\nUpgrade: websocket\r\n"),
    ],
    ids=["post", "version 8", "body", "no version"],
)
async def test_other_handshakes_are_refused(request_: bytes) -> None:
    async with upstream(http_echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(request_)
        assert (await peer.rest()).startswith(b"HTTP/1.1 501 ")
        assert up.connections == 0


async def test_bytes_that_are_no_websocket_end_it_and_each_side_is_told_its_part() -> None:
    told: list[tuple[int, str | None]] = []

    async def listens(socket: Socket) -> None:
        told.append(await socket.closed())

    async def babbles(socket: Socket) -> None:
        socket.peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        told.append(await socket.closed())

    for script, by_client in ((listens, True), (babbles, False)):
        watcher = Watcher()
        async with upstream(serving(script)) as up, running_lane(watcher) as lane:
            lane.rec.candidates = [up.target()]
            socket = await open_socket(await lane.connect())
            if by_client:
                socket.peer.send(b"\x81\x05hello")  # not masked
            code, _ = await socket.closed()
            assert code == (1002 if by_client else 1011)
            data = await watcher.ended()
            assert data.closed_by_client is by_client and data.close_code == 1002
    assert [code for code, _ in told] == [1001, 1002]


@pytest.mark.parametrize("extension", ["", DEFLATE], ids=["plain", "deflate"])
async def test_a_message_over_the_limit_ends_it(extension: str) -> None:
    async def script(socket: Socket) -> None:
        assert (await socket.closed())[0] == 1001

    watcher = Watcher()
    async with upstream(serving(script)) as up, running_lane(watcher, limits=Limits(max_body_bytes=100_000)) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect(), extension=extension)
        socket.binary(b"\0" * 60_000, b"\0" * 60_000)
        assert (await socket.event()).code == 1009  # type: ignore[attr-defined]
        assert (await watcher.ended()).close_code == 1009 and watcher.messages == []


async def test_a_side_that_takes_nothing_stops_the_other() -> None:
    go_on = asyncio.Event()

    async def script(socket: Socket) -> None:
        await go_on.wait()
        for n in range(200):
            assert await socket.message() == struct.pack(">I", n) * 25_000
        socket.close()
        await socket.event()

    watcher = Watcher()
    async with upstream(serving(script)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        for n in range(200):
            socket.binary(struct.pack(">I", n) * 25_000)
        flushing = asyncio.ensure_future(socket.peer.writer.drain())
        client = next(iter(lane.lane._clients))
        await until(lambda: client._read_paused, "the pause")
        assert len(watcher.messages) < 200 and not flushing.done()
        go_on.set()
        assert await socket.closed() == (1000, "")
        await flushing
        assert len(watcher.messages) == 200


async def test_a_client_that_leaves_a_full_tunnel_is_noticed() -> None:
    async def script(socket: Socket) -> None:
        await stay.wait()

    stay = asyncio.Event()
    watcher = Watcher()
    limits = Limits(write_timeout_s=0.1, linger_s=0.1)
    async with upstream(serving(script)) as up, running_lane(watcher, limits=limits) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        for _ in range(200):
            socket.binary(b"x" * 100_000)
        client = next(iter(lane.lane._clients))
        await until(lambda: client._read_paused, "the pause")
        # a reset is seen past what has not been read; a FIN stands in line behind it
        sock = socket.peer.writer.get_extra_info("socket")
        sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        socket.peer.reset()
        assert (await watcher.ended()).closed_by_client is True
        await until(lambda: lane.lane.pool.open_count == 0, "the backend's connection to be closed")
        stay.set()


@pytest.mark.parametrize("limit", ["idle_s", "total_s"])
async def test_time_is_up(limit: str) -> None:
    told: list[tuple[int, str | None]] = []

    async def script(socket: Socket) -> None:
        told.append(await socket.closed())

    watcher = Watcher()
    async with upstream(serving(script)) as up, running_lane(watcher) as lane:
        failed: list[Any] = []
        lane.lane.failing = lambda flow, error: failed.append(error)
        lane.rec.candidates = [up.target()]
        lane.rec.plan_options = {limit: 0.1}
        socket = await open_socket(await lane.connect())
        code, reason = await socket.closed()
        assert code == 1001 and reason
        data = await watcher.ended()
        assert data.closed_by_client is False and data.close_code == 1001 and failed[0].status == 504
        await until(lambda: told, "the backend's end")
    assert told == [(1001, reason)]


async def test_saved_with_its_messages_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "flows"
    watcher = Watcher()
    async with upstream(serving(echo)) as up, running_lane(watcher) as lane:
        lane.master.options.update(save_stream_file=str(file))
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        socket.text("kept")
        await socket.message()
        socket.close(1000, "bye")
        await socket.closed()
        await watcher.ended()
    with file.open("rb") as back:
        (flow,) = io.FlowReader(back).stream()
    assert isinstance(flow, http.HTTPFlow) and flow.websocket is not None
    assert [m.text for m in flow.websocket.messages] == ["kept", "kept"] and flow.websocket.close_reason == "bye"


async def test_the_end_of_the_gateway_is_told_to_both_sides() -> None:
    watcher = Watcher()
    told: list[tuple[int, str | None]] = []

    async def script(socket: Socket) -> None:
        socket.text("hello")
        told.append(await socket.closed())

    async with upstream(serving(script)) as up, running_lane(watcher) as lane:
        lane.rec.candidates = [up.target()]
        socket = await open_socket(await lane.connect())
        assert await socket.message() == "hello"
        draining = asyncio.ensure_future(lane.lane.drain(0.05))
        assert await socket.closed() == (1001, "the gateway is shutting down")
        await draining
        data = await watcher.ended()
        assert data.close_code == 1001 and data.closed_by_client is False
        await until(lambda: told)
    assert told == [(1001, "the gateway is shutting down")]


async def test_the_end_of_the_gateway_does_not_wait_for_goodbyes() -> None:
    watcher = Watcher()

    async def script(socket: Socket) -> None:
        await socket.peer.rest()  # never a word

    async with upstream(serving(script)) as up, running_lane(watcher, limits=Limits(linger_s=0.1)) as lane:
        lane.rec.candidates = [up.target()]
        sockets = [await open_socket(await lane.connect()) for _ in range(3)]
        async with asyncio.timeout(3):
            await lane.lane.drain(0.05)
        for socket in sockets:
            assert (await socket.event()).code == 1001  # type: ignore[attr-defined]
            assert await socket.event() is LOST


def test_on_uvloop() -> None:
    async def scenario() -> None:
        watcher = Watcher()
        async with upstream(serving(echo)) as up, running_lane(watcher) as lane:
            lane.rec.candidates = [up.target()]
            socket = await open_socket(await lane.connect(), extension=DEFLATE)
            for n in range(100):
                socket.binary(bytes([n]) * 100_000)
                assert await socket.message() == bytes([n]) * 100_000
            socket.peer.reset()
            assert (await watcher.ended()).close_code == 1006

    with asyncio.Runner(loop_factory=uvloop_loop_factory) as runner:
        runner.run(scenario())
