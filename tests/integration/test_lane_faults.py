"""Clients and backends that misbehave, at every stage; and the hooks, limits and ends that go with it."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http, io

from llmtap.core.plan import Target
from support.lane import (
    FakeUpstream,
    LaneHandle,
    Limits,
    Peer,
    Streamer,
    echo,
    get,
    post,
    response,
    running_lane,
    turn,
    until,
    upstream,
)

pytestmark = pytest.mark.integration

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDED = ["requestheaders", "request", "responseheaders", "response"]
FAILED_BEFORE = ["requestheaders", "request", "error"]
FAILED_AFTER = ["requestheaders", "request", "responseheaders", "error"]


async def refused_target() -> Target:
    """An address nobody listens on (any more)."""
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return Target("refused", "127.0.0.1", port)


def sse_error(tail: bytes) -> dict[str, Any]:
    """The error of the last event in raw chunks."""
    event = tail[tail.rindex(b"data: ") + 6 : tail.rindex(b"\n\n")]
    found: dict[str, Any] = json.loads(event)["error"]
    return found


# ---- backends that fail before the head: retried


async def close_at_once(peer: Peer) -> None:
    peer.close()


async def die_after_request(peer: Peer) -> None:
    await peer.message()
    peer.close()


async def reset_after_request(peer: Peer) -> None:
    await peer.message()
    peer.reset()


async def die_in_head(peer: Peer) -> None:
    await peer.message()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-")
    await peer.flush()


async def garbage(peer: Peer) -> None:
    await peer.message()
    peer.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await peer.rest()


async def overloaded(peer: Peer) -> None:
    while True:
        await peer.message()
        peer.send(response(b"busy", b"503 Service Unavailable"))


async def switch_protocols(peer: Peer) -> None:
    await peer.message()
    peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    await peer.rest()


async def silent(peer: Peer) -> None:
    await peer.rest()


async def both_lengths(peer: Peer) -> None:
    await peer.message()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    await peer.rest()


FAILURES = [
    (close_at_once, {"closed", "reset"}, 502),
    (die_after_request, {"closed"}, 502),
    (reset_after_request, {"reset", "closed"}, 502),  # whether RST or FIN depends on what the kernel had read
    (die_in_head, {"closed"}, 502),
    (garbage, {"protocol"}, 502),
    (switch_protocols, {"protocol"}, 502),
    (both_lengths, {"protocol"}, 502),
    (silent, {"first_byte_timeout"}, 504),
]


@pytest.mark.parametrize(("script", "reasons", "status"), FAILURES, ids=lambda v: getattr(v, "__name__", ""))
async def test_a_backend_that_fails_is_replaced_by_the_next(script: Any, reasons: set[str], status: int) -> None:
    async with upstream(script) as bad, upstream(echo) as good, running_lane() as lane:
        lane.rec.candidates = [bad.target("bad"), good.target("good")]
        lane.rec.plan_options = {"first_byte_s": 0.1}
        head, body = await lane.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 200 ") and body == b'{"ok":1}'
        assert len(lane.rec.failures) == 1 and lane.rec.failures[0][0] == "bad" and lane.rec.failures[0][1] in reasons
        plan = lane.rec.plan()
        assert plan.attempts == 2 and plan.served_by is not None and plan.served_by.backend == "good"
        assert lane.rec.flow_events() == ENDED


@pytest.mark.parametrize(("script", "reasons", "status"), FAILURES, ids=lambda v: getattr(v, "__name__", ""))
async def test_when_all_fail_the_answer_is_ours_after_the_error_hook(script: Any, reasons: set[str], status: int) -> None:
    async with upstream(script) as bad, running_lane() as lane:
        lane.rec.candidates = [bad.target("bad"), bad.target("bad")]
        lane.rec.plan_options = {"first_byte_s": 0.1}
        peer = await lane.connect()
        peer.send(post(b"{}"))
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 %d " % status) and b"x-answered: yes" in head
        assert lane.rec.flow_events() == FAILED_BEFORE
        plan = lane.rec.plan()
        assert plan.attempts == 2 and plan.served_by is None and plan.error is not None and plan.error.status == status
        assert json.loads(body)["error"]["message"] == plan.error.message == lane.rec.flows[0].error.msg  # type: ignore[union-attr]
        assert b"connection: close" not in head  # the client's connection is none the worse
        peer.send(post(b"{}"))
        assert (await peer.message())[0].startswith(b"HTTP/1.1 %d " % status)


async def test_refused_then_died_then_503_then_served() -> None:
    async with upstream(die_after_request) as died, upstream(overloaded) as busy, upstream(echo) as good, running_lane() as lane:
        lane.rec.candidates = [await refused_target(), died.target("died"), busy.target("busy"), good.target("good")]
        lane.rec.plan_options = {"retries": 3}
        assert (await lane.ask(post(b"{}")))[1] == b'{"ok":1}'
        assert lane.rec.failures == [("refused", "refused"), ("died", "closed"), ("busy", "status")]
        assert lane.rec.events.count("server_connect_error") == 1 and lane.rec.events.count("server_connected") == 3


async def test_retries_bound_the_attempts() -> None:
    async with upstream(echo) as good, running_lane() as lane:
        lane.rec.candidates = [await refused_target(), await refused_target(), good.target()]
        lane.rec.plan_options = {"retries": 1}
        assert (await lane.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 502 ")
        assert lane.rec.plan().attempts == 2


async def test_a_last_503_passes_through_as_the_backend_sent_it() -> None:
    async with upstream(overloaded) as busy, running_lane() as lane:
        lane.rec.candidates = [busy.target("busy")]
        head, body = await lane.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and body == b"busy" and b"x-answered" not in head
        assert lane.rec.failures == [("busy", "status")] and lane.rec.flow_events() == ENDED


async def test_a_stale_pooled_connection_is_not_held_against_the_backend() -> None:
    second = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(response(b"1"))
        if up.connections == 1:
            await peer.exactly(1)  # the next request has begun: too late
            peer.reset()
            second.set()

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        for _ in range(2):
            peer.send(post(b"{}"))
            assert (await peer.message())[1] == b"1"
        assert second.is_set() and up.connections == 2
        assert lane.rec.failures == [] and lane.rec.plan().attempts == 1


async def test_bytes_nobody_asked_for_never_answer_the_next_request() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(response(b"first") + response(b"poison"))
        await peer.rest()

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        for _ in range(3):
            peer.send(post(b"{}"))
            assert (await peer.message())[1] == b"first"
        assert up.connections == 3


async def test_unsolicited_bytes_on_an_idle_connection_close_it() -> None:
    poke = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(response(b"1"))
        await poke.wait()
        peer.send(response(b"poison"))
        await peer.rest()

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"{}")))[1] == b"1"
        poke.set()
        await lane.rec.seen("server_disconnected")
        assert (await lane.ask(post(b"{}")))[1] == b"1"
        assert up.connections == 2


async def test_an_idle_connection_is_dropped_before_the_backend_would() -> None:
    async with upstream(echo) as up, running_lane(limits=Limits(pool_idle_s=0.1)) as lane:
        lane.rec.candidates = [up.target()]
        await lane.ask(post(b"{}"))
        await lane.rec.seen("server_disconnected")
        assert lane.lane.pool.idle_count == lane.lane.pool.open_count == 0


async def test_connect_timeout() -> None:
    # a listener whose queue is full accepts nothing more: connecting to it hangs
    import socket

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with running_lane() as lane:
                lane.rec.candidates = [Target("full", "127.0.0.1", full.getsockname()[1])]
                lane.rec.plan_options = {"connect_s": 0.1}
                assert (await lane.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 504 ")
                assert lane.rec.failures == [("full", "connect_timeout")]
        finally:
            for filler in fillers:
                filler.close()


# ---- backends that fail after the head


async def stream_then(peer: Peer, end: Any) -> None:
    await peer.message()
    peer.send(SSE + b"9\r\ndata: 1\n\n\r\n")
    await peer.flush()
    await end(peer)


@pytest.mark.parametrize("how", ["close", "reset", "garbage", "idle"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_broken_stream_ends_with_one_error_event_and_a_closed_connection(how: str, path: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(SSE + b"9\r\ndata: 1\n\n\r\n")
        await peer.flush()
        await until(lambda: streamer.seen, "the first chunk")
        if how == "reset":
            peer.reset()
        elif how == "garbage":
            peer.send(b"zz\r\n")
        if how in ("idle", "garbage"):
            await peer.rest()

    streamer = Streamer()
    async with upstream(script) as up, running_lane(streamer) as lane:
        lane.rec.candidates = [up.target(), up.target()]
        lane.rec.plan_options = {"idle_s": 0.1}
        peer = await lane.connect()
        peer.send(post(b"{}", path))
        head = await peer.head()
        assert head.startswith(b"HTTP/1.1 200 ")
        tail = await peer.rest()
        assert tail.startswith(b"9\r\ndata: 1\n\n\r\n") and not tail.endswith(b"0\r\n\r\n")
        error = sse_error(tail)
        assert (b"event: error\n" in tail) == (path == "/v1/messages")
        assert "message" in error and tail.count(b'"error"') == (2 if path == "/v1/messages" else 1)
        assert lane.rec.flow_events() == FAILED_AFTER
        flow = lane.rec.flows[0]
        assert flow.response is not None and flow.error is not None
        plan = lane.rec.plan()
        assert plan.error is not None and plan.error.status == (504 if how == "idle" else 502)
        assert plan.attempts == 1  # nothing is retried once the client has seen the head
        assert streamer.seen == [b"data: 1\n\n"]


async def test_a_stream_that_had_its_own_end_gets_no_second_one() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(SSE + b"e\r\ndata: [DONE]\n\n\r\n")
        await peer.flush()

    async with upstream(script) as up, running_lane(Streamer()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        assert (await peer.rest()).endswith(b"e\r\ndata: [DONE]\n\n\r\n")
        assert lane.rec.flow_events() == FAILED_AFTER


async def test_a_broken_response_of_known_length_is_cut_short_and_nothing_is_added() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100\r\n\r\ndata: 1\n\n")
        await peer.flush()

    async with upstream(script) as up, running_lane(Streamer()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        assert (await peer.rest()).endswith(b"\r\n\r\ndata: 1\n\n")


async def test_a_buffered_response_that_breaks_is_a_whole_502() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await peer.flush()

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 502 ")
        assert lane.rec.flow_events() == FAILED_AFTER


async def test_a_buffered_response_has_a_bound() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
        await peer.rest()

    async with upstream(script) as up, running_lane(limits=Limits(max_reply_bytes=1000)) as lane:
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 502 ")


async def test_the_total_time_is_bounded() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(SSE)
        while True:
            peer.send(b"9\r\ndata: 1\n\n\r\n")
            await peer.flush()
            await streamer.more()

    streamer = Streamer()
    async with upstream(script) as up, running_lane(streamer) as lane:
        lane.rec.candidates = [up.target()]
        lane.rec.plan_options = {"total_s": 0.3, "idle_s": 5.0}
        peer = await lane.connect()
        peer.send(post(b"{}"))
        assert sse_error(await peer.rest())["code"] == "upstream_timeout"


async def test_a_callable_that_raises_ends_the_stream_with_an_error() -> None:
    def broken(data: bytes) -> bytes:
        raise ValueError("no")

    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(SSE)
        await peer.flush()
        await until(lambda: "responseheaders" in lane.rec.events)
        peer.send(b"9\r\ndata: 1\n\n\r\n")
        await peer.rest()

    async with upstream(script) as up, running_lane(Streamer(broken)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        tail = await peer.rest()
        assert b"data: 1" not in tail and sse_error(tail)["code"] == "internal_error"
        assert lane.rec.flow_events() == FAILED_AFTER


# ---- clients


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_client_that_leaves_aborts_the_backend_at_once(streamed: bool, how: str) -> None:
    aborted = asyncio.Event()
    begun = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        if streamed:
            peer.send(SSE + b"9\r\ndata: 1\n\n\r\n")
        begun.set()
        await peer.rest()
        aborted.set()

    streamer = Streamer()
    async with upstream(script) as up, running_lane(streamer) as lane:
        lane.rec.candidates = [up.target(), up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await begun.wait()
        if streamed:
            await peer.until(b"data: 1\n\n\r\n")
        if how == "fin":
            peer.writer.write_eof()
        else:
            peer.reset()
        await asyncio.wait_for(aborted.wait(), 5)
        await lane.rec.seen("client_disconnected")
        assert lane.rec.flow_events() == (FAILED_AFTER if streamed else FAILED_BEFORE)
        flow = lane.rec.flows[0]
        assert flow.error is not None and flow.error.msg == "Client disconnected." and (flow.response is not None) == streamed
        assert lane.rec.plan().error is None and lane.rec.failures == [] and b"" not in streamer.seen
        assert not flow.live


async def test_a_draining_plan_reads_the_response_to_its_end() -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(SSE + b"9\r\ndata: 1\n\n\r\n")
        await go_on.wait()
        peer.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        await peer.rest()

    streamer = Streamer()
    async with upstream(script) as up, running_lane(streamer) as lane:
        lane.rec.candidates = [up.target()]
        lane.rec.plan_options = {"on_client_disconnect": "drain"}
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await peer.until(b"data: 1\n\n\r\n")
        peer.reset()
        await lane.rec.seen("client_disconnected")
        assert "error" not in lane.rec.events
        go_on.set()
        await lane.rec.seen("error")
        assert streamer.seen == [b"data: 1\n\n", b"data: 2\n\n", b""]
        assert lane.rec.flow_events() == FAILED_AFTER and lane.lane.pool.idle_count == 1


async def test_a_client_that_leaves_while_its_request_is_held_in_a_hook() -> None:
    class Queue:
        name = "test.queue"

        async def request(self, flow: http.HTTPFlow) -> None:
            await lane.rec.seen("client_disconnected")

    async with upstream(echo) as up, running_lane(Queue()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await lane.rec.seen("request")
        peer.close()
        await lane.rec.seen("error")
        assert up.connections == 0 and lane.rec.flows[0].error.msg == "Client disconnected."  # type: ignore[union-attr]


async def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    async with running_lane() as lane:
        peer = await lane.connect()
        peer.send(b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 10\r\n\r\n123")
        await lane.rec.seen("requestheaders")
        peer.close()
        await lane.rec.seen("error")
        assert lane.rec.flow_events() == ["requestheaders", "error"]


async def test_a_client_that_leaves_a_generated_answer_ends_the_generator() -> None:
    ended = asyncio.Event()

    class Generate:
        name = "test.generate"

        def request(self, flow: http.HTTPFlow) -> None:
            async def pieces() -> AsyncIterator[bytes]:
                try:
                    yield b"one"
                    await asyncio.Event().wait()
                finally:
                    ended.set()

            flow.response = http.Response.make(200)
            del flow.response.headers["content-length"]
            lane.rec.plans[flow].body = pieces()

    async with running_lane(Generate()) as lane:
        lane.rec.candidates = [Target("none", "127.0.0.1", 9)]
        peer = await lane.connect()
        peer.send(get())
        await peer.until(b"one\r\n")
        peer.reset()
        await asyncio.wait_for(ended.wait(), 5)
        await lane.rec.seen("error")
        assert lane.rec.flow_events() == FAILED_AFTER


async def test_a_stalled_reader_is_cut_off() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            peer.send(b"10000\r\n" + b"z" * 65536 + b"\r\n")
            await peer.flush()

    async with upstream(script) as up, running_lane(Streamer(), limits=Limits(write_timeout_s=0.2)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect(limit=1 << 16)
        peer.send(get())
        await lane.rec.seen("client_disconnected")
        assert lane.rec.flow_events() == FAILED_AFTER


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: g\r\nX: ", 408),
        (b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 10\r\n\r\n123", 408),
    ],
)
async def test_a_request_that_does_not_arrive_in_time(data: bytes, status: int) -> None:
    async with running_lane(limits=Limits(head_timeout_s=0.1, body_timeout_s=0.1)) as lane:
        peer = await lane.connect()
        peer.send(data)
        assert (await peer.head()).startswith(b"HTTP/1.1 %d " % status)
        await peer.rest()


async def test_a_body_that_trickles_is_too_slow_though_it_never_stops() -> None:
    async with running_lane(limits=Limits(body_timeout_s=0.3, min_body_rate=1_000_000)) as lane:
        peer = await lane.connect()
        peer.send(b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 100000\r\n\r\n")

        async def trickle() -> None:
            while True:
                peer.send(b"x")
                await turn()

        task = asyncio.ensure_future(trickle())
        try:
            assert (await peer.head()).startswith(b"HTTP/1.1 408 ")
        finally:
            task.cancel()


@pytest.mark.parametrize("served", [False, True])
async def test_idle_connections_are_closed(served: bool) -> None:
    async with upstream(echo) as up, running_lane(limits=Limits(head_timeout_s=0.1, keepalive_timeout_s=0.1)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        if served:
            peer.send(post(b"{}"))
            await peer.message()
        assert await peer.rest() == b""


async def test_the_connection_cap() -> None:
    async with upstream(echo) as up, running_lane(limits=Limits(max_connections=1)) as lane:
        lane.rec.candidates = [up.target()]
        first = await lane.connect()
        await lane.rec.seen("client_connected")
        refused = await (await lane.connect()).rest()
        assert refused.startswith(b"HTTP/1.1 503 ") and b"too_many_connections" in refused
        first.send(post(b"{}"))
        assert (await first.message())[1] == b'{"ok":1}'


async def test_limits_can_be_swapped_while_it_runs() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"x" * 100))
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        lane.lane.set_limits(Limits(max_body_bytes=10))
        peer.send(post(b"x" * 100))
        assert (await peer.message())[0].startswith(b"HTTP/1.1 413 ")


# ---- smuggling and malformed heads


H = b"POST /v1/x HTTP/1.1\r\nHost: g\r\n"
SMUGGLING = {
    "cl+te": H + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te+cl": H + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": H + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two equal lengths": H + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "length list": H + b"Content-Length: 3, 3\r\n\r\nabc",
    "length sign": H + b"Content-Length: +3\r\n\r\nabc",
    "negative length": H + b"Content-Length: -1\r\n\r\nabc",
    "hex length": H + b"Content-Length: 0x3\r\n\r\nabc",
    "empty length": H + b"Content-Length: \r\n\r\nabc",
    "huge length": H + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "te gzip": H + b"Transfer-Encoding: gzip\r\n\r\nabc",
    "te gzip, chunked": H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "te identity": H + b"Transfer-Encoding: identity\r\n\r\n",
    "te xchunked": H + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "te twice": H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te identity and chunked": H + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te space before colon": H + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "te vertical tab": H + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "te in 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te folded": H + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "folded": H + b"A: b\r\n c\r\n\r\n",
    "folded first": b"GET / HTTP/1.1\r\n A: b\r\n\r\n",
    "bare lf": b"GET / HTTP/1.1\nHost: g\n\n",
    "bare lf in head": H + b"A: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare lf at its end": H + b"A: b\r\n\n",
    "bare cr": H + b"A: b\rc\r\n\r\n",
    "nul in value": H + b"A: b\0c\r\n\r\n",
    "nul in name": H + b"A\0: c\r\n\r\n",
    "control in value": H + b"A: \x01\r\n\r\n",
    "space in name": H + b"A b: c\r\n\r\n",
    "empty name": H + b": c\r\n\r\n",
    "no colon": H + b"abc\r\n\r\n",
    "chunk size bare lf": H + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "chunk ext bare lf": H + b"Transfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
    "chunk data bare lf": H + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n",
    "chunk too long": H + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    "chunk hex prefix": H + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk huge": H + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "chunk negative": H + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    "chunk space": H + b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    "length in trailer": H + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    "te in trailer": H + b"Transfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "absolute": b"GET http://evil/ HTTP/1.1\r\nHost: g\r\n\r\n",
    "authority": b"CONNECT evil:443 HTTP/1.1\r\nHost: g\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: g\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: g\r\n\r\n",
    "no target": b"GET x HTTP/1.1\r\nHost: g\r\n\r\n",
    "tab in target": b"GET /a\tb HTTP/1.1\r\nHost: g\r\n\r\n",
    "space in target": b"GET /a b HTTP/1.1\r\nHost: g\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "http 0.9": b"GET /\r\n\r\n",
    "http 2.0": b"GET / HTTP/2.0\r\nHost: g\r\n\r\n",
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "lower method": b"get / HTTP/1.1\r\nHost: g\r\n\r\n",
    "unknown method": b"FOO / HTTP/1.1\r\nHost: g\r\n\r\n",
    "trace": b"TRACE / HTTP/1.1\r\nHost: g\r\n\r\n",
    "long head": H + b"A: " + b"x" * 70_000 + b"\r\n\r\n",
    "endless head": H + b"A: " + b"x" * 400_000,
    "many headers": H + b"A: b\r\n" * 300 + b"\r\n",
    "endless trailer": H + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 400_000,
    "endless chunk extension": H + b"Transfer-Encoding: chunked\r\n\r\n1;a=" + b"x" * 400_000,
}


@pytest.mark.parametrize("name", SMUGGLING)
async def test_smuggling_is_refused_and_never_forwarded(name: str) -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(SMUGGLING[name] + get("/smuggled"))
        head, body = await peer.message()
        assert head[9:12] in (b"400", b"413", b"431", b"501"), head
        assert b"connection: close" in head and json.loads(body)["error"]["message"]
        assert await peer.rest() == b""
        assert "request" not in lane.rec.events and up.connections == 0


async def test_requests_before_a_bad_one_are_answered() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"1") + post(b"2") + b"BAD\r\n\r\n")
        assert (await peer.message())[1] == (await peer.message())[1] == b'{"ok":1}'
        assert (await peer.message())[0].startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
        assert await peer.rest() == b""


@pytest.mark.parametrize("where", ["request", "response", "path", "trailer"])
async def test_line_breaks_an_addon_puts_into_headers_go_nowhere(where: str) -> None:
    class Careless:
        name = "test.careless"

        def request(self, flow: http.HTTPFlow) -> None:
            if where == "request":
                flow.request.headers["x"] = "a\r\nTransfer-Encoding: chunked"
            elif where == "path":
                flow.request.path = "/a HTTP/1.1\r\nX: y"
            elif where == "trailer":
                flow.request.trailers = http.Headers([(b"x", b"y\r\n\r\nGET /")])

        def response(self, flow: http.HTTPFlow) -> None:
            assert flow.response is not None
            if where == "response":
                flow.response.headers["x"] = "a\nSet-Cookie: b"

    async with upstream(echo) as up, running_lane(Careless()) as lane:
        lane.rec.candidates = [up.target()]
        head, body = await lane.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 500 ") and b"internal_error" in body and b"Set-Cookie" not in head
        assert (where == "response") == (up.connections == 1)


# ---- hooks, interception, kill


class Hold:
    """Intercepts at one hook."""

    name = "test.hold"

    def __init__(self, at: str) -> None:
        setattr(self, at, lambda flow: flow.intercept())


@pytest.mark.parametrize("at", ["requestheaders", "request", "responseheaders", "response"])
@pytest.mark.parametrize("how", ["resume", "kill"])
async def test_a_held_flow_is_resumed_or_killed(at: str, how: str) -> None:
    async with upstream(echo) as up, running_lane(Hold(at)) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await lane.rec.seen(at)
        flow = lane.rec.flows[0]
        await until(lambda: flow.intercepted)
        if how == "resume":
            flow.resume()
            assert (await peer.message())[1] == b'{"ok":1}'
            assert lane.rec.flow_events() == ENDED
        else:
            flow.kill()
            assert await peer.rest() == b""
            await lane.rec.seen("client_disconnected")
            assert lane.rec.events.count("error") + lane.rec.events.count("response") == 1
        assert not flow.live


async def test_a_streaming_flow_can_be_killed() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.send(SSE)
        while True:
            peer.send(b"9\r\ndata: 1\n\n\r\n")
            await peer.flush()
            await streamer.more()

    streamer = Streamer()
    async with upstream(script) as up, running_lane(streamer) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await peer.until(b"data: 1\n\n")
        lane.rec.flows[0].kill()
        assert b"error" not in await peer.rest()
        await lane.rec.seen("error")


async def test_async_hooks_are_awaited_and_a_client_can_be_refused() -> None:
    order: list[str] = []

    class Slow:
        name = "test.slow"

        async def client_connected(self, client: Any) -> None:
            turned = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(turned.set_result, None)
            await turned
            order.append("client_connected")

        async def requestheaders(self, flow: http.HTTPFlow) -> None:
            turned = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(turned.set_result, None)
            await turned
            order.append("requestheaders")

        def request(self, flow: http.HTTPFlow) -> None:
            order.append("request")

    class Refuse:
        name = "test.refuse"

        def client_connected(self, client: Any) -> None:
            client.error = "go away"

    async with upstream(echo) as up, running_lane(Slow()) as lane:
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"{}")))[1] == b'{"ok":1}'
        assert order == ["client_connected", "requestheaders", "request"]
    async with running_lane(Refuse()) as lane:
        assert await (await lane.connect()).rest() == b""
    async with running_lane(Slow(), Refuse()) as lane:
        assert await (await lane.connect()).rest() == b""


async def test_server_connect_can_be_refused_by_an_addon() -> None:
    class Refuse:
        name = "test.refuse"

        def server_connect(self, data: Any) -> None:
            data.server.error = "not there"

    async with upstream(echo) as up, running_lane(Refuse()) as lane:
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 502 ")
        assert up.connections == 0 and lane.rec.failures == [("a", "refused")]


async def test_flows_saved_with_w_are_read_by_stock_mitmproxy(tmp_path: Path) -> None:
    saved = tmp_path / "flows"
    async with upstream(echo) as up, running_lane() as lane:
        lane.master.options.update(save_stream_file=str(saved))
        lane.rec.candidates = [up.target()]
        await lane.ask(post(b'{"a":1}'))
        await lane.ask(post(b"{}", "/second"))
        lane.rec.candidates = [await refused_target()]
        await lane.ask(post(b"{}", "/third"))
        lane.master.options.update(save_stream_file=None)
    with saved.open("rb") as file:
        flows = list(io.FlowReader(file).stream())
    assert [f.request.path for f in flows] == ["/v1/chat/completions", "/second", "/third"]  # type: ignore[union-attr]
    assert flows[0].response.content == b'{"ok":1}' and flows[0].request.content == b'{"a":1}'  # type: ignore[union-attr]
    # a mitmproxy that has never heard of the gateway mode
    check = (
        "import sys; from mitmproxy import io; from mitmproxy.proxy.mode_specs import ReverseMode;"
        "f = list(io.FlowReader(open(sys.argv[1],'rb')).stream()); assert len(f) == 3;"
        "assert all(isinstance(x.client_conn.proxy_mode, ReverseMode) for x in f)"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-I", "-c", check, str(saved)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


async def test_a_flow_can_be_replayed() -> None:
    from mitmproxy.addons.clientplayback import ClientPlayback

    playback = ClientPlayback()
    async with upstream(echo) as up, running_lane(playback, default=None) as lane:
        lane.rec.candidates = [up.target()]
        await lane.ask(post(b'{"a":1}'))
        again = lane.rec.flows[0].copy()
        playback.start_replay([again])
        await lane.rec.seen("response", 2)
        assert again.response is not None and again.response.content == b'{"ok":1}'
        assert again.is_replay == "request" and up.connections == 1  # replays take the lane, and its pool
        await until(lambda: playback.inflight is None)


# ---- stopping, listeners, TLS, UNIX sockets


async def test_draining_lets_requests_finish_and_takes_no_new_ones() -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        arrived.set()
        await go_on.wait()
        peer.send(response(b"late"))
        await peer.rest()

    async with upstream(script) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        idle, busy = await lane.connect(), await lane.connect()
        await lane.rec.seen("client_connected", 2)
        busy.send(post(b"{}"))
        await arrived.wait()
        draining = asyncio.ensure_future(lane.lane.drain(5))
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await lane.connect()
        go_on.set()
        head, body = await busy.message()
        assert b"connection: close" in head and body == b"late"
        await asyncio.wait_for(draining, 5)
        assert lane.lane.connections == 0 == lane.lane.pool.open_count


async def test_draining_cuts_what_does_not_finish() -> None:
    async with upstream(silent) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await lane.rec.seen("server_connected")
        await lane.lane.drain(0.05)
        assert await peer.rest() == b""
        assert lane.rec.flow_events() == FAILED_BEFORE


async def test_shutting_down_drains_first_and_a_second_time_ends_at_once() -> None:
    async with upstream(silent) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(post(b"{}"))
        await lane.rec.seen("server_connected")
        lane.master.shutdown()
        await until(lambda: lane.lane.draining, "draining")
        assert not lane.master.should_exit.is_set()
        lane.master.shutdown()
        await asyncio.wait_for(lane.master.should_exit.wait(), 5)


async def test_listeners_open_and_close_while_it_runs() -> None:
    async with upstream(echo) as up, running_lane() as lane:
        lane.rec.candidates = [up.target()]
        extra = lane.lane.listen("127.0.0.1", 0)
        peer = await lane.connect(port=extra.port)
        peer.send(post(b"{}"))
        assert (await peer.message())[1] == b'{"ok":1}'
        extra.close()
        with pytest.raises(ConnectionRefusedError):
            await lane.connect(port=extra.port)
        peer.send(post(b"{}"))  # open connections go on
        assert (await peer.message())[1] == b'{"ok":1}'


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for localhost, key in the same file."""
    from mitmproxy import certs

    store = certs.CertStore.from_store(tmp_path, "test", 2048)
    entry = store.get_cert("localhost", [])
    file = tmp_path / "both.pem"
    from cryptography.hazmat.primitives import serialization

    key = entry.privatekey.private_bytes(  # type: ignore[union-attr]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(key + entry.cert.to_pem() + store.default_ca.to_pem())
    return file


async def test_tls_on_both_sides(certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate.parent / "test-ca-cert.pem"))
    trusting.verify_flags &= ~ssl.VERIFY_X509_STRICT
    trusting.check_hostname = False
    async with upstream(echo, ssl=context) as up, running_lane(Streamer(), ssl_insecure=True) as lane:
        lane.rec.candidates = [Target("a", "localhost", up.port, tls=True)]
        listener = lane.lane.listen("127.0.0.1", 0, cert=str(certificate))
        peer = await lane.connect(port=listener.port, ssl=trusting)
        for _ in range(2):
            peer.send(post(b"{}"))
            assert (await peer.message())[1] == b'{"ok":1}'
        assert lane.rec.flows[0].client_conn.tls and lane.rec.flows[0].server_conn.tls
        assert up.connections == 1
        plain = await lane.connect(port=listener.port)  # not TLS: closed, and nobody else minds
        plain.send(post(b"{}"))
        await plain.rest()
        peer.send(post(b"{}"))
        assert (await peer.message())[1] == b'{"ok":1}'
        listener.close()
        peer.close()
        await lane.rec.seen("client_disconnected")


async def test_a_tls_backend_nobody_vouches_for_is_not_trusted(certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with upstream(echo, ssl=context) as up, running_lane() as lane:
        lane.rec.candidates = [Target("a", "localhost", up.port, tls=True)]
        assert (await lane.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 502 ")
        assert lane.rec.failures == [("a", "protocol")]


async def test_a_backend_on_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with upstream(echo, path=path), running_lane() as lane:
        lane.rec.candidates = [Target("a", "localhost", 0, uds=path)]
        assert (await lane.ask(post(b"{}")))[1] == b'{"ok":1}'
        assert lane.rec.flows[0].get_state()["server_conn"]["address"] == (path, 0)


# ---- neighbours


async def test_a_hundred_neighbours_do_not_notice_any_of_it() -> None:
    async def steady(peer: Peer) -> None:
        while True:
            await peer.message()
            peer.send(SSE)
            for i in range(20):
                peer.send(b"9\r\ndata: %d\n\n\r\n" % (i % 10))
                await peer.flush()
            peer.send(b"0\r\n\r\n")

    async def one(lane: LaneHandle) -> bytes:
        peer = await lane.connect()
        peer.send(get("/steady"))
        body = (await peer.message())[1]
        peer.close()
        return body

    class Split:
        name = "test.split"

        def request(self, flow: http.HTTPFlow) -> None:
            lane.rec.plans[flow].candidates = [(good if flow.request.path == "/steady" else bads[flow.request.path]).target()]

    scripts = [close_at_once, die_after_request, reset_after_request, die_in_head, garbage, both_lengths]
    bads: dict[str, FakeUpstream] = {}
    for script in scripts:
        fake = bads[f"/{script.__name__}"] = FakeUpstream(script)
        await fake.start()
    try:
        async with upstream(steady) as good, running_lane(Split(), Streamer()) as lane:
            lane.rec.candidates = [good.target()]
            steady_ones = [asyncio.ensure_future(one(lane)) for _ in range(100)]
            for name in SMUGGLING:
                peer = await lane.connect()
                peer.send(SMUGGLING[name])
            for path in bads:
                for _ in range(5):
                    peer = await lane.connect()
                    peer.send(post(b"{}", path))
            for task in steady_ones:
                raw = await task
                assert raw.count(b"data: ") == 20 and raw.endswith(b"0\r\n\r\n")
    finally:
        for fake in bads.values():
            await fake.stop()
