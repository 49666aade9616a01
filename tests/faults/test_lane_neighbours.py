"""One client or backend misbehaves, at every stage and in every way; hundreds of others, in the middle of their streams
through the same lane and the same backend, get every byte.

A neighbour asks, gets the first half of its stream, and the second half only when the fault has struck; some ask again after
that, over connections the fault may have touched. `LLMTAP_NEIGHBOURS` says how many there are (100, long: 1,000).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from mitmproxy import http

from llmtap.core.plan import Plan, Target
from llmtap.lane import Upload
from support.lane import LaneHandle, Limits, Peer, Streamer, post, running_lane, turn, until, upstream
from support.size import size

pytestmark = pytest.mark.faults

NEIGHBOURS = size("LLMTAP_NEIGHBOURS", 100, 1000)
_AGAIN = 10  # every so many-th neighbour asks a second time
_FAULTS = 5  # of the same kind at once
_SHORT_S = 0.3
LIMITS = Limits(
    head_timeout_s=1.0, body_timeout_s=1.0, write_timeout_s=1.0, keepalive_timeout_s=1.0, linger_s=0.2, high_water=64 << 10
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
_END = b"7\r\ndata: z\r\n0\r\n\r\n"


def _payload(n: int, part: int) -> bytes:
    return b"data: %d %d %b\n\n" % (n, part, b"x" * (n % 97))


def _event(n: int, part: int) -> bytes:
    data = _payload(n, part)
    return b"%x\r\n%b\r\n" % (len(data), data)


# ---- a fault of the backend: done by a script, once the request has been read (or not even that)

Fault = Callable[[Peer], Awaitable[None]]


async def close(peer: Peer) -> None:
    await peer.flush()
    peer.close()


async def reset(peer: Peer) -> None:
    await peer.flush()
    peer.reset()


async def stall(peer: Peer) -> None:
    await peer.flush()
    await peer.rest()


async def garbage(peer: Peer) -> None:
    peer.send(b"\x00\xffSSH-2.0-x\r\n\r\nHTTP/1.1 200 OK\r\nzz\r\n" * 10)
    await peer.flush()
    await peer.rest()


ENDS = (close, reset, stall, garbage)
#: where in the exchange: what has been sent before
STAGES = {
    "connected": None,
    "asked": b"",
    "in the head": HEAD[:40],
    "after the head": HEAD,
    "in a chunk's size": HEAD + _event(1, 1) + b"1",
    "in a chunk": HEAD + _event(1, 1) + b"10\r\nabc",
    "in a body of known length": SIZED + b"0123456789",
}


def at_stage(sent: bytes | None, end: Fault) -> Fault:
    async def script(peer: Peer) -> None:
        if sent:
            peer.send(sent)
            await peer.flush()
            await turn()
        await end(peer)

    return script


async def trickle(peer: Peer) -> None:
    for byte in HEAD[-30:] + _END:
        peer.send(bytes([byte]))
        await peer.flush()
        await asyncio.sleep(0)


async def trickled(peer: Peer) -> None:
    peer.send(HEAD[:-30])
    await trickle(peer)


async def extra(peer: Peer) -> None:
    peer.send(SIZED + b"0" * 20 + EVIL)
    await peer.flush()
    await peer.rest()


async def extra_later(peer: Peer) -> None:
    peer.send(SIZED + b"0" * 20)
    await peer.flush()
    await turn()
    peer.send(EVIL * 3)
    await peer.flush()
    await peer.rest()


async def whole_then_close(peer: Peer) -> None:
    peer.send(SIZED + b"0" * 20)
    await close(peer)


async def whole_then_reset(peer: Peer) -> None:
    peer.send(SIZED + b"0" * 20)
    await reset(peer)


async def interim_without_end(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
    await peer.rest()


async def head_without_end(peer: Peer) -> None:
    peer.send(HEAD[:-2] + b"X: " + b"x" * 600_000)
    await peer.rest()


_OTHERS = (trickled, extra, extra_later, whole_then_close, whole_then_reset, interim_without_end, head_without_end)
BACKENDS: dict[str, Fault] = {
    **{f"{end.__name__} {stage}": at_stage(sent, end) for stage, sent in STAGES.items() for end in ENDS},
    **{fault.__name__: fault for fault in _OTHERS},
}

#: after these the response is whole, and the client must get it so
WHOLE = {"trickled", "extra", "extra_later", "whole_then_close", "whole_then_reset", "garbage in a body of known length"}

# ---- a fault of the client: what it sends, and how it goes on

ASKED = post(b"{}", "/whole")


async def no_reading(peer: Peer) -> None:
    """Takes nothing: asyncio stops reading at its own limit."""


async def trickling(peer: Peer) -> None:
    for byte in ASKED[-40:]:
        peer.send(bytes([byte]))
        await peer.flush()
        await asyncio.sleep(0)
    assert (await peer.message())[1] == b"0" * 20
    peer.close()


CLIENT_STAGES = {
    "connected": b"",
    "in the head": ASKED[:30],
    "after the head": ASKED[:-2],
    "in the body": b"POST /whole HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500,
    "in a streamed body": b"POST /whole/upload HTTP/1.1\r\nHost: g\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000,
    "in a streamed chunk": b"POST /whole/upload HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc",
    "asked": post(b"{}", "/silent"),
    "in the response": post(b"{}", "/long"),
    "two asked": post(b"{}", "/long") * 2,
}
CLIENTS: dict[str, tuple[bytes, Fault]] = {
    f"{end.__name__} {stage}": (sent, end) for stage, sent in CLIENT_STAGES.items() for end in (close, reset, no_reading, garbage)
} | {"trickling": (ASKED[:-40], trickling)}


class Scene:
    """The lane, the backend everybody uses, one that fails as soon as it is connected, and one that does not exist."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self.struck = asyncio.Event()
        self.lane: LaneHandle
        self.targets: dict[str, Target] = {}

    async def backend(self, peer: Peer) -> None:
        while True:
            head, body = await peer.message()
            path = head.split(b" ")[1].decode()
            if path == "/faulty":
                await self._fault(peer)
                return
            if path.startswith("/whole"):
                peer.send(SIZED + b"0" * 20)
            elif path == "/silent":
                await peer.rest()
            elif path == "/long":
                peer.send(HEAD)
                for _ in range(128):
                    peer.send(b"10000\r\n" + b"y" * 65536 + b"\r\n")
                    await peer.flush()
                peer.send(b"0\r\n\r\n")
            else:
                n = int(path.rpartition("/")[2])
                assert body == b"%d," % n * 50
                peer.send(HEAD + _event(n, 1))
                if path.startswith("/n/"):
                    await self.struck.wait()
                peer.send(_event(n, 2) + _END)

    async def unread(self, peer: Peer) -> None:
        await self._fault(peer)

    # the addon that says who goes where

    name = "test.scene"

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        flow.request.stream = flow.request.path.endswith("/upload")

    def uploading(self, flow: http.HTTPFlow, upload: Upload) -> None:
        self.request(flow)

    def request(self, flow: http.HTTPFlow) -> None:
        path = flow.request.path.removesuffix("/upload")
        target = self.targets.get(path, self.targets["*"])
        short = _SHORT_S if path in ("/faulty", "/unread", "/refused", "/silent") else 0.0
        self.lane.rec.plans[flow] = Plan([target], retries=0, first_byte_s=short, idle_s=short)
        self.lane.rec.flows.clear()
        self.lane.rec.events.clear()

    async def neighbour(self, n: int, gate: asyncio.Semaphore) -> None:
        async with gate:  # no more at once than fit into a listen queue
            peer = await self.lane.connect()
            peer.send(post(b"%d," % n * 50, f"/n/{n}"))
            await peer.until(b"data: %d 1 " % n)
        await self.struck.wait()
        rest = await peer.until(b"\r\n0\r\n\r\n")
        assert _unchunked(b"%x\r\ndata: %d 1 " % (len(_payload(n, 1)), n) + rest) == _payload(n, 1) + _payload(n, 2) + b"data: z"
        if n % _AGAIN == 0:
            peer.send(post(b"%d," % n * 50, f"/again/{n}"))
            head, body = await peer.message()
            assert head == HEAD
            assert _unchunked(body) == _payload(n, 1) + _payload(n, 2) + b"data: z"
        peer.close()

    async def gone(self, peer: Peer) -> None:
        """Until the lane has nothing left of this client."""
        port = peer.writer.get_extra_info("sockname")[1]
        await until(lambda: all(c.conn.peername[1] != port for c in self.lane.lane._clients), "the end of a client")


def _unchunked(data: bytes) -> bytes:
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        out, data = out + data[:length], data[length + 2 :]
    return out


async def among_neighbours(fault: Fault, faulty: Callable[[Scene], Awaitable[None]]) -> None:
    """`faulty` happens some times while everybody else is in the middle of a stream."""
    scene = Scene(fault)
    async with (
        upstream(scene.backend) as up,
        upstream(scene.unread) as bad,
        running_lane(scene, Streamer(), limits=LIMITS) as lane,
    ):
        scene.lane = lane
        lane.lane.uploading = scene.uploading
        closed = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = closed.sockets[0].getsockname()[1]
        closed.close()
        await closed.wait_closed()
        scene.targets = {"*": up.target(), "/unread": bad.target(), "/refused": Target("refused", "127.0.0.1", port)}
        gate = asyncio.Semaphore(40)
        async with asyncio.TaskGroup() as group:
            for n in range(NEIGHBOURS):
                group.create_task(scene.neighbour(n, gate))
            await until(lambda: up.connections >= NEIGHBOURS, "all neighbours to be in their streams")
            async with asyncio.TaskGroup() as faults:
                for _ in range(_FAULTS):
                    faults.create_task(faulty(scene))
            scene.struck.set()
        head, body = await lane.ask(post(b"{}", "/whole"))
        assert head.startswith(b"HTTP/1.1 200 ") and body == b"0" * 20


@pytest.mark.parametrize("name", [*BACKENDS, "refused"])
async def test_a_backend_that(name: str) -> None:
    fault = BACKENDS.get(name, close)
    path = "/refused" if name == "refused" else "/unread" if name.endswith("connected") else "/faulty"

    async def faulty(scene: Scene) -> None:
        peer = await scene.lane.connect()
        peer.send(post(b"{}", path, "Connection: close\r\n"))
        got = await peer.rest()
        head, _, body = got.partition(b"\r\n\r\n")
        assert b"EVIL" not in got
        if name in WHOLE:
            assert head.startswith(b"HTTP/1.1 200 ") and (len(body) == 20 or _unchunked(body) == b"data: z")
        elif head.startswith(b"HTTP/1.1 200 "):
            assert b"data: z" not in body and (b'"error"' in body or len(body) < 20)
        else:
            assert head.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 504 ")) and b'"error"' in body

    await among_neighbours(fault, faulty)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("size", [1000, 5_000_000])
async def test_a_backend_that_fails_in_the_middle_of_an_upload(end: Fault, size: int) -> None:
    async def faulty(scene: Scene) -> None:
        peer = await scene.lane.connect()
        peer.send(b"POST /unread/upload HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n" % size + b"x" * (size // 2))
        head, body = await peer.message()
        assert head.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 504 ", b"HTTP/1.1 408 ")) and b'"error"' in body
        peer.reset()
        await scene.gone(peer)

    await among_neighbours(end, faulty)


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_client_that(name: str) -> None:
    sent, how = CLIENTS[name]

    async def faulty(scene: Scene) -> None:
        peer = await scene.lane.connect()
        peer.send(sent)
        await peer.flush()
        await turn()
        await how(peer)
        await scene.gone(peer)

    await among_neighbours(close, faulty)
