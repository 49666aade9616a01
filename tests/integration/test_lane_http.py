"""HTTP/1.1 through the lane, byte by byte: what a client sends is what a backend gets, and back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mitmproxy import http

from llmtap.lane import relay, uvloop_loop_factory
from support.lane import Limits, Peer, Streamer, echo, get, post, response, running_lane, until, upstream

pytestmark = pytest.mark.integration


class Early:
    """Refuses in `requestheaders`, before the body."""

    name = "test.early"

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.request.path == "/refused":
            flow.response = http.Response.make(401, b"no", {"content-type": "text/plain"})


async def test_a_request_and_its_response_keep_their_bytes() -> None:
    async def script(peer: Peer) -> None:
        head, body = await peer.message()
        assert head == (
            b"POST /v1/chat/completions?x=%20y HTTP/1.1\r\nHost: up.example\r\nX-B: 1\r\nx-a: two  words\r\nX-B: 3\r\nEmpty: \r\n"
            b"Content-Length: 2\r\n\r\n"
        )
        assert body == b"{}"
        peer.send(
            b"HTTP/1.1 201 Very Fine\r\nX-Z: 1\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 3\r\nServer:\r\n\r\nabc"
        )

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target(host_header=b"up.example")]
        head, body = await lane.ask(
            b"POST /v1/chat/completions?x=%20y HTTP/1.1\r\nHost: gateway\r\nX-B: 1\r\nConnection: keep-alive, X-Hop\r\n"
            b"x-a: two  words \r\nX-B: 3\r\nX-Hop: gone\r\nTE: trailers\r\nEmpty:\r\nContent-Length: 2\r\n\r\n{}"
        )
        assert head == (
            b"HTTP/1.1 201 Very Fine\r\nX-Z: 1\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 3\r\nServer: \r\n\r\n"
        )
        assert body == b"abc"
        assert lane.rec.flow_events() == ["requestheaders", "request", "responseheaders", "response"]
        assert lane.rec.plan().attempts == 1 and lane.rec.plan().served_by == up.target(host_header=b"up.example")
        assert lane.rec.plan().sent_at is not None


async def test_keep_alive_serves_many_requests_over_one_connection_each_side() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        for i in range(5):
            peer.send(post(b"x" * i))
            assert (await peer.message())[1] == b'{"ok":1}'
        assert up.connections == 1
        assert lane.rec.events.count("client_connected") == 1 == lane.rec.events.count("server_connected")


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def script(peer: Peer) -> None:
        while True:
            head, body = await peer.message()
            peer.send(response(head.split()[1] + b":" + body))

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(b"".join(post(b"%d" % i, f"/p{i}") for i in range(20)) + get("/last", "Connection: close\r\n"))
        for i in range(20):
            assert (await peer.message())[1] == b"/p%d:%d" % (i, i)
        assert (await peer.message())[1] == b"/last:"
        assert await peer.rest() == b""


async def test_many_requests_answered_at_once_do_not_recurse() -> None:
    async with running_lane(Early(), limits=Limits(max_pipelined=2000)) as lane:
        peer = await lane.connect()
        peer.send(get("/refused") * 1500)
        for _ in range(1500):
            assert (await peer.message())[0].startswith(b"HTTP/1.1 401 ")


async def test_more_pipelined_requests_than_allowed_end_the_connection_after_those_allowed() -> None:
    async with running_lane(Early(), limits=Limits(max_pipelined=3)) as lane:
        peer = await lane.connect()
        peer.send(get("/refused") * 10)
        got = await peer.rest()
        assert got.count(b"HTTP/1.1 401 ") == 3
        assert got.count(b"connection: close") == 1


async def test_a_client_that_leaves_while_requests_queue_is_noticed() -> None:
    arrived = asyncio.Event()
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        arrived.set()
        await peer.rest()
        gone.set()

    async with upstream(script) as up, running_lane(limits=Limits(high_water=4096, head_timeout_s=0.1)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"1") + post(b"y" * 50_000) * 8)  # more than is read ahead
        await arrived.wait()
        peer.reset()
        await asyncio.wait_for(gone.wait(), 5)
        await lane.rec.seen("error")
        assert lane.rec.flows[0].error is not None and lane.rec.flows[0].error.msg == "Client disconnected."
        assert lane.rec.events.count("requestheaders") == 1


async def test_head_has_no_body() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 123\r\n\r\n")

    for addons in ((), (Streamer(),)):
        async with upstream(script) as up, running_lane(*addons) as lane:
            lane.rec.candidates = [up.target()]
            peer = await lane.connect()
            for _ in range(2):
                peer.send(b"HEAD / HTTP/1.1\r\nHost: g\r\n\r\n")
                assert await peer.head() == b"HTTP/1.1 200 OK\r\nContent-Length: 123\r\n\r\n"
            assert up.connections == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_bodyless_statuses(status: bytes, streamed: bool) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            peer.send(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n")

    async with upstream(script) as up, running_lane(*([Streamer()] if streamed else [])) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        for _ in range(2):
            peer.send(get())
            assert await peer.head() == b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n"
        assert up.connections == 1


async def test_100_continue_is_sent_before_the_body_and_never_forwarded() -> None:
    async def script(peer: Peer) -> None:
        head, body = await peer.message()
        assert b"xpect" not in head and body == b"hello"
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + response(b"1"))

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(b"POST / HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await peer.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"hello")
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"Link" not in head and body == b"1"


async def test_chunked_both_ways_with_trailers() -> None:
    async def script(peer: Peer) -> None:
        head, body = await peer.message()
        assert b"transfer-encoding: chunked" in head.lower() and b"content-length" not in head.lower()
        assert body == b"5\r\nhello\r\n0\r\nX-T: v\r\n\r\n"
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;ext=1\r\nab\r\n1\r\nc\r\n0\r\nX-Sum: 1\r\n\r\n")

    for addons, expected in (((), b"3\r\nabc\r\n"), ((Streamer(),), None)):
        async with upstream(script) as up, running_lane(*addons) as lane:
            lane.rec.candidates = [up.target()]
            head, body = await lane.ask(
                b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX-T: v\r\n\r\n"
            )
            assert b"Transfer-Encoding: chunked" in head
            assert body.endswith(b"0\r\nX-Sum: 1\r\n\r\n")
            assert expected is None or body.startswith(expected)


async def test_a_response_that_ends_with_its_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it")
        await peer.flush()

    for addons in ((), (Streamer(),)):
        async with upstream(script) as up, running_lane(*addons) as lane:
            lane.rec.candidates = [up.target()]
            peer = await lane.connect()
            for _ in range(2):
                peer.send(get())
                _, body = await peer.message()
                assert body in (b"all of it", b"9\r\nall of it\r\n0\r\n\r\n")
            assert lane.rec.events.count("response") == 2


async def test_http_1_0_clients() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async with upstream(script) as up, running_lane(Streamer()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(b"GET / HTTP/1.0\r\n\r\n")
        assert await peer.rest() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        for _ in range(2):
            peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            head, body = await peer.message()
            assert b"connection: keep-alive" in head and body == b'{"ok":1}'


async def test_a_refusal_from_the_head_goes_out_before_the_body() -> None:
    async with running_lane(Early()) as lane:
        peer = await lane.connect()
        peer.send(b"POST /refused HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\n\r\n")
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 401 ") and b"connection: close" in head and body == b"no"
        assert await peer.rest() == b""
        assert lane.rec.flow_events() == ["requestheaders", "responseheaders", "response"]


async def test_a_small_rest_of_a_refused_body_is_dropped_and_the_connection_kept() -> None:
    async with upstream(echo) as up, running_lane(Early()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(b"POST /refused HTTP/1.1\r\nHost: g\r\nContent-Length: 10\r\n\r\n12345")
        head, _ = await peer.message()
        assert b"connection: close" not in head
        peer.send(b"67890" + post(b"{}"))
        assert (await peer.message())[1] == b'{"ok":1}'


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_early(chunked: bool) -> None:
    async with running_lane(limits=Limits(max_body_bytes=1000)) as lane:
        peer = await lane.connect()
        if chunked:
            peer.send(b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001)
        else:
            peer.send(b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 100000\r\n\r\n")
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 413 ") and b"x-answered: yes" in head and b"request_too_large" in body
        assert lane.rec.flow_events() == ["requestheaders", "error"]


async def test_the_longest_allowed_body_passes() -> None:
    async with upstream(echo) as up, running_lane(limits=Limits(max_body_bytes=1000)) as lane:
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"x" * 1000)))[0].startswith(b"HTTP/1.1 200 ")


async def test_streaming_calls_the_callable_for_every_chunk_and_once_for_the_end() -> None:
    step = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(3):
            peer.send(b"9\r\ndata: %d\n\n\r\n" % i)
            await peer.flush()
            await step.wait()
            step.clear()
        peer.send(b"0\r\n\r\n")

    streamer = Streamer(lambda data: data if data else [b"bye", b"!"])
    async with upstream(script) as up, running_lane(streamer) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(get())
        assert b"Transfer-Encoding: chunked\r\n" in await peer.head()
        for i in range(3):
            assert await peer.exactly(14) == b"9\r\ndata: %d\n\n\r\n" % i  # at once, while the stream is open
            step.set()
        assert await peer.until(b"0\r\n\r\n") == b"4\r\nbye!\r\n0\r\n\r\n"
        assert streamer.seen == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", b""]


@pytest.mark.parametrize("few", [4, 0])
def test_a_stream_that_is_here_to_its_end(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few exchanges its text is with the client before its end is looked at, with more all goes in one call. On uvloop,
    which by itself would write nothing before the end of its turn."""
    monkeypatch.setattr(relay, "_FEW", few)
    there: list[bytes] = []
    peers: list[Peer] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.message()
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n")

    def look(data: bytes) -> bytes:
        if not data:
            with socket.socket(fileno=os.dup(peers[-1].writer.get_extra_info("socket").fileno())) as sock:
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    there.append(sock.recv(1000, socket.MSG_PEEK))
        return data or b"two"

    async def scenario() -> None:
        async with upstream(script) as up, running_lane(Streamer(look)) as lane:
            lane.rec.candidates = [up.target()]
            peers.append(peer := await lane.connect())
            for _ in range(2):
                peer.send(post(b"{}"))
                await peer.head()
                assert await peer.until(b"0\r\n\r\n") == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"

    with asyncio.Runner(loop_factory=uvloop_loop_factory) as runner:
        runner.run(scenario())
    assert [data.endswith(b"3\r\none\r\n") for data in there] == ([True, True] if few else [])


@pytest.mark.parametrize("few", [4, 0])
@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n", "Content-Length: 3\r\n\r\none"])
async def test_a_stream_whose_end_fails_keeps_its_text(few: int, framing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_FEW", few)

    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing.encode())
        await peer.rest()

    def broken(data: bytes) -> bytes:
        if not data:
            raise ValueError("no")
        return data

    async with upstream(script) as up, running_lane(Streamer(broken)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        assert b" 200 OK\r\n" in await peer.head()
        rest = await peer.rest()
        assert b"one" in rest and (b"internal_error" in rest) is framing.startswith("T")


@pytest.mark.parametrize("nothing", [b"", []])
async def test_a_callable_may_withhold_chunks(nothing: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(4):
            peer.send(b"1\r\n%d\r\n" % i)
            await peer.flush()
            await until(lambda i=i: b"%d" % i in b"".join(streamer.seen))
        peer.send(b"0\r\n\r\n")

    streamer = Streamer(lambda data: data if data in (b"1", b"3") else nothing)
    async with upstream(script) as up, running_lane(streamer) as lane:
        lane.rec.candidates = [up.target()]
        _, body = await lane.ask(get())
        assert body == b"1\r\n1\r\n1\r\n3\r\n0\r\n\r\n"


async def test_a_streamed_response_of_known_length_keeps_its_length() -> None:
    async with upstream(echo) as up, running_lane(Streamer()) as lane:
        lane.rec.candidates = [up.target()]
        head, body = await lane.ask(post(b"{}"))
        assert b"content-length: 8\r\n" in head and b"chunked" not in head and body == b'{"ok":1}'


async def test_a_generated_answer_streams() -> None:
    class Generate:
        name = "test.generate"

        def request(self, flow: http.HTTPFlow) -> None:
            async def pieces() -> AsyncIterator[bytes]:
                for i in range(3):
                    yield b"data: %d\n\n" % i

            flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
            del flow.response.headers["content-length"]
            lane.rec.plans[flow].body = pieces()

    async with running_lane(Generate()) as lane:
        lane.rec.candidates = [object()]  # type: ignore[list-item]
        head, body = await lane.ask(get())
        assert b"transfer-encoding: chunked" in head
        assert body == b"9\r\ndata: 0\n\n\r\n9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        assert lane.rec.flow_events() == ["requestheaders", "request", "responseheaders", "response"]


async def test_a_slow_reader_slows_the_backend_down_and_loses_nothing() -> None:
    total = 64 << 20
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while sent < total:
            peer.send(b"10000\r\n" + b"z" * 65536 + b"\r\n")
            sent += 65536
            await peer.flush()
        peer.send(b"0\r\n\r\n")

    async with upstream(script) as up, running_lane(Streamer(), limits=Limits(high_water=64 << 10)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect(limit=1 << 16)
        peer.send(get())
        await peer.head()
        await until(lambda: any(c.write_paused for c in lane.lane._clients), "back-pressure")
        before = sent
        assert before < total
        received = 0
        while received < total:
            size = int(await peer.until(b"\r\n"), 16)
            received += size
            await peer.exactly(size + 2)
        assert received == total == sent


async def test_requests_without_a_plan_go_to_the_modes_server_as_in_reverse_mode() -> None:
    async def script(peer: Peer) -> None:
        head, _ = await peer.message()
        assert b"Host: 127.0.0.1:%d\r\n" % up.port in head
        peer.send(response(b"1"))

    async with upstream(script) as up, running_lane(default=up.port) as lane:
        assert (await lane.ask(get()))[1] == b"1"
        flow = lane.rec.flows[0]
        assert (flow.request.host, flow.request.port) == ("127.0.0.1", up.port)
        assert flow.client_conn.proxy_mode.full_spec.startswith("reverse:")


async def test_without_plan_and_server_the_answer_is_503_and_the_lane_never_asks_itself() -> None:
    async with running_lane() as lane:
        head, body = await lane.ask(get())
        assert head.startswith(b"HTTP/1.1 503 ") and b"no_healthy_backend" in body
        assert lane.rec.flow_events() == ["requestheaders", "request", "error"]


async def test_target_headers_are_on_the_wire_only() -> None:
    async def script(peer: Peer) -> None:
        head, _ = await peer.message()
        assert b"Authorization: Bearer client" not in head and head.count(b"authorization: Bearer backend\r\n") == 1
        peer.send(response())

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target(headers=((b"authorization", b"Bearer backend"),))]
        await lane.ask(get(extra="Authorization: Bearer client\r\n"))
        assert lane.rec.flows[0].request.headers["authorization"] == "Bearer client"


async def test_an_h2c_upgrade_is_ignored_and_its_body_kept() -> None:
    async def script(peer: Peer) -> None:
        while True:
            head, body = await peer.message()
            assert b"pgrade" not in head and b"HTTP2-Settings" not in head
            peer.send(response(body))

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        more = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
        peer.send(post(b"hello", extra=more) + post(b"next"))
        assert (await peer.message())[1] == b"hello"
        assert (await peer.message())[1] == b"next"
        peer.send(get(extra=more) + post(b"third"))
        assert (await peer.message())[1] == b""
        assert (await peer.message())[1] == b"third"


async def test_works_without_eager_tasks_too() -> None:
    async with upstream(echo) as up, running_lane(Streamer(), eager=False) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        for _ in range(3):
            peer.send(post(b"{}") * 2)
            assert (await peer.message())[1] == (await peer.message())[1] == b'{"ok":1}'


def test_on_uvloop() -> None:
    """uvloop's transports, timers and accept differ; the launcher's own master runs on it."""
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            head, _ = await peer.message()
            peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
            )
            if b"/endless" in head:
                await peer.rest()
                gone.set()
            peer.send(b"0\r\n\r\n")

    async def scenario() -> None:
        async with upstream(script) as up, running_lane(Streamer()) as lane:
            lane.rec.candidates = [up.target()]
            peer = await lane.connect()
            peer.send(post(b"x" * 300_000) + post(b"2"))
            for _ in range(2):
                assert (await peer.message())[1] == b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"
            peer.send(b"BAD\r\n\r\n")
            assert (await peer.head()).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
            assert not (await peer.rest()).startswith(b"HTTP")
            peer = await lane.connect()
            peer.send(get("/endless"))
            await peer.until(b"data: 1\n\n")
            peer.reset()
            await asyncio.wait_for(gone.wait(), 5)
            await lane.rec.seen("error")

    with asyncio.Runner(loop_factory=uvloop_loop_factory) as runner:
        runner.run(scenario())
