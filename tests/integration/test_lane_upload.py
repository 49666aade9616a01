"""Request bodies that are sent on as they come: bytes, pressure, early answers, and everybody who may die on the way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.flow import Error

from llmtap.core.errors import BadRequest
from llmtap.core.plan import Plan, Target
from llmtap.lane import Upload
from support.lane import (
    LaneHandle,
    Limits,
    Peer,
    Streamer,
    echo,
    post,
    response,
    running_lane,
    turn,
    until,
    upstream,
)

pytestmark = pytest.mark.integration
HEAD = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: g\r\n"
FORWARDED = ["requestheaders", "request", "responseheaders", "response"]
#: a client that sends this much to a backend that does not read must be held up long before the end
MUCH = 48 << 20


class Uploads:
    """Streams every request; `stream` may be a callable, `before` what is done before the body goes on."""

    name = "test.uploads"

    def __init__(self, stream: Any = True, before: Callable[[http.HTTPFlow, Upload], Awaitable[None]] | None = None) -> None:
        self.stream = stream
        self.before = before
        self.uploads: list[Upload] = []
        self.at_request: list[int] = []

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        flow.request.stream = self.stream

    def request(self, flow: http.HTTPFlow) -> None:
        if self.uploads:
            self.at_request.append(self.uploads[-1].received)


@contextlib.asynccontextmanager
async def lane_with(uploads: Uploads, *targets: Target, addons: tuple[Any, ...] = (), **how: Any) -> AsyncIterator[LaneHandle]:
    plan = how.pop("plan", {})
    async with running_lane(uploads, *addons, **how) as lane:

        def uploading(flow: http.HTTPFlow, upload: Upload) -> Awaitable[None] | None:
            uploads.uploads.append(upload)
            failures = lane.rec.failures
            lane.rec.plans[flow] = Plan(list(targets), on_failure=lambda t, r: failures.append((t.backend, r)), **plan)
            return uploads.before(flow, upload) if uploads.before is not None else None

        lane.lane.uploading = uploading
        yield lane


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_body_of_known_length_goes_on_as_it_comes() -> None:
    heads: list[bytes] = []
    got = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            heads.append(await peer.head())
            assert await peer.exactly(5) == b"hello"
            got.set()
            assert await peer.exactly(6) == b" world"
            peer.send(response(b"1"))

    uploads = Uploads()
    async with upstream(script) as up, lane_with(uploads, up.target(host_header=b"up")) as lane:
        peer = await lane.connect()
        for _ in range(2):
            peer.send(HEAD + b"X-a: 1\r\nContent-Length: 11\r\nx-A: 2\r\n\r\nhello")
            await got.wait()  # long before the end
            got.clear()
            peer.send(b" world")
            assert (await peer.message())[1] == b"1"
        sent = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: up\r\nX-a: 1\r\nContent-Length: 11\r\nx-A: 2\r\n\r\n"
        assert heads == [sent, sent]
        assert lane.rec.flow_events() == FORWARDED * 2 and uploads.at_request == [11, 11]
        assert lane.rec.flows[0].request.raw_content is None, "it is not kept"
        assert lane.rec.plan().attempts == 1 and lane.rec.plan().sent_at is not None


async def test_chunks_and_trailers() -> None:
    async def script(peer: Peer) -> None:
        head, body = await peer.message()
        assert b"Transfer-Encoding: chunked\r\n" in head and b"ontent-" not in head
        assert body.replace(b"\r\n", b"") in (b"3abc2de0X-Sum: 9", b"5abcde0X-Sum: 9") and body.endswith(b"X-Sum: 9\r\n\r\n")
        peer.send(response())

    async with upstream(script) as up, lane_with(Uploads(), up.target()) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await lane.rec.seen("server_connected")
        peer.send(b"2;ext=1\r\nde\r\n0\r\nX-Sum: 9\r\n\r\n")
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        trailers = lane.rec.flows[0].request.trailers
        assert trailers is not None and trailers["x-sum"] == "9"


async def test_a_callable_sees_every_piece_and_the_end() -> None:
    seen: list[bytes] = []

    def change(data: bytes) -> Any:
        seen.append(data)
        return [data.upper(), b"!"] if data else b"end"

    async def script(peer: Peer) -> None:
        head, body = await peer.message()
        assert b"chunked" in head and b"ontent-" not in head  # who knows what length it will have
        assert body == b"".join(map(chunk, (b"AB", b"!", b"CD", b"!", b"end"))) + b"0\r\n\r\n"
        peer.send(response())

    async with upstream(script) as up, lane_with(Uploads(change), up.target()) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 4\r\n\r\nab")
        await until(lambda: seen)
        peer.send(b"cd")
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        assert seen == [b"ab", b"cd", b""]


async def test_a_callable_that_raises_is_our_error() -> None:
    def change(data: bytes) -> bytes:
        raise RuntimeError("no")

    async def script(peer: Peer) -> None:
        await peer.head()
        assert await peer.rest() == b""

    async with upstream(script) as up, lane_with(Uploads(change), up.target()) as lane:
        head, body = await lane.ask(HEAD + b"Content-Length: 4\r\n\r\nab")
        assert head.startswith(b"HTTP/1.1 500 ") and b"internal_error" in body
        assert lane.rec.flow_events() == ["requestheaders", "error"]


async def test_what_is_here_as_a_whole_goes_the_usual_way() -> None:
    async with upstream(echo) as up, lane_with(Uploads()) as lane:
        lane.rec.candidates = [up.target()]
        assert (await lane.ask(post(b"small")))[1] == b'{"ok":1}'
        assert lane.rec.flows[0].request.raw_content == b"small"
        assert lane.rec.flow_events() == FORWARDED


@pytest.mark.parametrize("declared", [True, False])
async def test_the_limit_for_bodies_in_memory_does_not_apply(declared: bool) -> None:
    total = 0

    async def script(peer: Peer) -> None:
        nonlocal total
        _head, body = await peer.message()
        total = len(body)
        peer.send(response())

    async with upstream(script) as up, lane_with(Uploads(), up.target(), limits=Limits(max_body_bytes=200_000)) as lane:
        peer = await lane.connect()
        framing = b"Content-Length: 500000\r\n\r\n" if declared else b"Transfer-Encoding: chunked\r\n\r\n"
        peer.send(HEAD + framing + (b"x" * 100_000 if declared else chunk(b"x" * 100_000)))
        for _ in range(4):
            await turn()
            peer.send(b"x" * 100_000 if declared else chunk(b"x" * 100_000))
        peer.send(b"" if declared else b"0\r\n\r\n")
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        assert total >= 500_000


async def test_a_backend_that_does_not_read_holds_the_client_up() -> None:
    read = asyncio.Event()
    total = 0

    async def script(peer: Peer) -> None:
        nonlocal total
        await peer.head()
        await read.wait()
        while total < MUCH:
            total += len(await peer.reader.read(1 << 20))
        peer.send(response())

    uploads = Uploads()
    async with (
        upstream(script) as up,
        lane_with(uploads, up.target(), limits=Limits(body_timeout_s=0.2, high_water=64 << 10)) as lane,
    ):
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: %d\r\n\r\n" % MUCH)
        sending = asyncio.create_task(_send(peer, MUCH))
        await until(lambda: uploads.uploads and uploads.uploads[0].received > 64 << 10)
        before = -1
        while before != uploads.uploads[0].received:  # until nothing moves: longer than a client may keep us waiting
            before = uploads.uploads[0].received
            await asyncio.wait([sending], timeout=0.5)
        assert before < MUCH // 2 and not sending.done()
        read.set()
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        await sending
        assert total == MUCH


async def _send(peer: Peer, size: int) -> None:
    with contextlib.suppress(ConnectionError):
        for _ in range(size >> 20):
            peer.send(b"x" * (1 << 20))
            await peer.flush()


async def test_a_backend_that_never_reads_is_given_up() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await asyncio.Event().wait()

    async with upstream(script) as up, lane_with(Uploads(), up.target(), plan={"idle_s": 0.3}) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: %d\r\n\r\n" % MUCH)
        sending = asyncio.create_task(_send(peer, MUCH))
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 504 ") and b"upstream_timeout" in body
        sending.cancel()


async def test_expect_100_continue_is_answered_when_a_backend_is_there() -> None:
    async def script(peer: Peer) -> None:
        head, body = await peer.message()
        assert b"xpect" not in head and body == b"hello"
        peer.send(response())

    async with upstream(script) as up, lane_with(Uploads(), up.target()) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await peer.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"hello")
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")


async def test_expect_100_continue_without_a_backend_spares_the_body() -> None:
    async with lane_with(Uploads()) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        head, _ = await peer.message()
        assert head.startswith(b"HTTP/1.1 503 ") and b"connection: close" in head


async def test_an_early_refusal_of_the_backend_reaches_the_client_at_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(response(b"too long", b"413 Payload Too Large"))
        await peer.rest()

    async with upstream(script) as up, lane_with(Uploads(), up.target()) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1000)
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 413 ") and b"connection: close" in head and body == b"too long"
        assert await peer.rest() == b""
        await lane.rec.seen("server_disconnected")  # nobody gets that connection again
        assert lane.rec.flow_events() == ["requestheaders", "responseheaders", "response"]


async def test_both_directions_at_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        assert await peer.exactly(1) == b"a"
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"A"))
        assert await peer.exactly(1) == b"b"
        peer.send(chunk(b"B") + b"0\r\n\r\n")

    async with upstream(script) as up, lane_with(Uploads(), up.target(), addons=(Streamer(),)) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 2\r\n\r\na")
        await peer.head()
        assert await peer.until(chunk(b"A")) == chunk(b"A")
        peer.send(b"b")
        assert await peer.until(b"0\r\n\r\n") == chunk(b"B") + b"0\r\n\r\n"


async def test_a_client_that_leaves_in_the_middle_aborts_the_backend() -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.exactly(10)
        await peer.rest()
        gone.set()

    uploads = Uploads()
    # also where it may finish: of half a request nothing will come
    async with upstream(script) as up, lane_with(uploads, up.target(), plan={"on_client_disconnect": "drain"}) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 20\r\n\r\n" + b"x" * 10)
        await until(lambda: uploads.uploads and uploads.uploads[0].received == 10)
        peer.reset()
        await asyncio.wait_for(gone.wait(), 5)
        await lane.rec.seen("error")
        error = lane.rec.flows[0].error
        assert error is not None and error.msg == "Client disconnected."
        assert lane.rec.failures == []


async def test_a_client_that_stops_sending_is_given_up() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.rest()

    async with upstream(script) as up, lane_with(Uploads(), up.target(), limits=Limits(body_timeout_s=0.1)) as lane:
        head, body = await lane.ask(HEAD + b"Content-Length: 20\r\n\r\n" + b"x" * 10)
        assert head.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in body
        assert lane.rec.failures == []


async def test_a_client_whose_chunks_are_none_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        assert b"0\r\n\r\n" not in await peer.rest()

    async with upstream(script) as up, lane_with(Uploads(), up.target()) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        await lane.rec.seen("server_connected")
        peer.send(b"zz\r\n")
        assert (await peer.message())[0].startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_backend_that_dies_in_the_middle_is_a_502(how: str) -> None:
    async def dies(peer: Peer) -> None:
        await peer.head()
        await peer.exactly(600_000)
        getattr(peer, how)()

    async with upstream(dies) as up, upstream(echo) as other, lane_with(Uploads(), up.target("a"), other.target("b")) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 700_000)
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 502 ") and b"upstream_error" in body
        assert other.connections == 0, "what has gone out cannot be sent again"
        assert [name for name, _ in lane.rec.failures] == ["a"] and lane.rec.plan().attempts == 1


async def test_another_backend_is_asked_while_nothing_is_lost() -> None:
    async def dies(peer: Peer) -> None:
        await peer.head()
        await peer.exactly(3)
        peer.reset()

    async def busy(peer: Peer) -> None:
        await peer.head()
        peer.send(response(b"busy", b"503 Service Unavailable"))
        await peer.rest()

    async def script(peer: Peer) -> None:
        _, body = await peer.message()
        peer.send(response(body))

    async with upstream(dies) as a, upstream(busy) as b, upstream(script) as c:
        refused = Target("refused", "127.0.0.1", 1)
        uploads = Uploads()
        targets = [refused, a.target("a"), b.target("b"), c.target("c")]
        async with lane_with(uploads, *targets, plan={"retries": 3}) as lane:
            peer = await lane.connect()
            peer.send(HEAD + b"Content-Length: 6\r\n\r\nabc")
            await until(lambda: c.connections)
            peer.send(b"def")
            assert (await peer.message())[1] == b"abcdef"
            assert [name for name, _ in lane.rec.failures] == ["refused", "a", "b"]
            assert lane.rec.plan().attempts == 4 and lane.rec.flow_events() == FORWARDED


async def test_the_first_byte_counts_from_the_end_of_the_body() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.rest()

    async with upstream(script) as up, lane_with(Uploads(), up.target(), plan={"first_byte_s": 0.2, "retries": 0}) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 2\r\n\r\na")
        waited = asyncio.create_task(peer.message())
        await asyncio.wait([waited], timeout=0.5)
        assert not waited.done()
        peer.send(b"b")
        assert (await waited)[0].startswith(b"HTTP/1.1 504 ")
        assert lane.rec.failures == [("a", "first_byte_timeout")]


async def test_a_refusal_before_the_body_goes_on() -> None:
    async def refuse(flow: http.HTTPFlow, upload: Upload) -> None:
        flow.response = http.Response.make(403, b"no")

    async with lane_with(Uploads(before=refuse)) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 10\r\n\r\n123")
        head, body = await peer.message()
        assert head.startswith(b"HTTP/1.1 403 ") and body == b"no"
        peer.send(b"4567890" + HEAD + b"Content-Length: 10\r\n\r\n123")  # a small rest: the connection is kept
        assert (await peer.message())[1] == b"no"


async def test_a_look_at_the_beginning_takes_nothing() -> None:
    looked: list[bytes] = []

    async def look(flow: http.HTTPFlow, upload: Upload) -> None:
        def enough(piece: bytes) -> bool:
            looked.append(piece)
            return b"=" in b"".join(looked)

        assert await upload.look(enough, 100)

    async def script(peer: Peer) -> None:
        _, body = await peer.message()
        peer.send(response(body))

    async with upstream(script) as up, lane_with(Uploads(before=look), up.target()) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert await peer.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"mod")
        await until(lambda: looked)
        assert up.connections == 0
        peer.send(b"el=")
        await until(lambda: up.connections)
        peer.send(b"abc")
        assert (await peer.message())[1] == b"model=abc"
        assert b"".join(looked) == b"model=abc"


async def test_a_look_has_a_limit_and_an_end() -> None:
    found: list[bool] = []

    async def look(flow: http.HTTPFlow, upload: Upload) -> None:
        found.append(await upload.look(lambda piece: False, 100))

    async def script(peer: Peer) -> None:
        while True:
            _, body = await peer.message()
            peer.send(response(b"%d" % len(body)))

    async with upstream(script) as up, lane_with(Uploads(before=look), up.target()) as lane:
        peer = await lane.connect()
        for times, size in enumerate((1000, 50)):
            peer.send(HEAD + b"Content-Length: %d\r\n\r\n" % size)
            await turn()
            peer.send(b"x" * (size - 1))
            await until(lambda times=times: len(found) > times or times)
            peer.send(b"x")
            assert (await peer.message())[1] == b"%d" % size
        assert found == [False, True]


async def test_what_a_later_look_finds_ends_the_request() -> None:
    async def look(flow: http.HTTPFlow, upload: Upload) -> None:
        def see(piece: bytes) -> bool:
            if b"evil" in piece:
                raise BadRequest("evil")
            return True

        await upload.look(see, 100)

    async def script(peer: Peer) -> None:
        await peer.head()
        assert b"evil" not in await peer.rest()

    async with upstream(script) as up, lane_with(Uploads(before=look), up.target()) as lane:
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 20\r\n\r\nfine")
        await until(lambda: up.connections)
        peer.send(b"evil")
        assert (await peer.message())[0].startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("stage", ["looking", "sending"])
async def test_a_client_that_leaves_or_a_kill_at_every_stage(stage: str) -> None:
    async def look(flow: http.HTTPFlow, upload: Upload) -> None:
        if stage == "looking":
            await upload.look(lambda piece: False, 100)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.rest()

    for kill in (False, True):
        uploads = Uploads(before=look)
        async with upstream(script) as up, lane_with(uploads, up.target(), limits=Limits(head_timeout_s=0.1)) as lane:
            peer = await lane.connect()
            peer.send(HEAD + b"Content-Length: 20\r\n\r\nabc")
            await until(lambda uploads=uploads: uploads.uploads and uploads.uploads[0].received == 3)
            if kill:
                lane.rec.flows[0].kill()
            else:
                peer.close()
            await lane.rec.seen("error")
            error = lane.rec.flows[0].error
            assert error is not None and error.msg == (Error.KILLED_MESSAGE if kill else "Client disconnected.")
            assert await peer.rest() == b""


async def test_a_held_end_waits_for_its_release() -> None:
    done = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        done.set()
        peer.send(response())

    async with upstream(script) as up, lane_with(Uploads(), up.target()) as lane:
        lane.master.options.update(intercept="~q")
        peer = await lane.connect()
        peer.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        await lane.rec.seen("server_connected")
        peer.send(b"0\r\n\r\n")
        await lane.rec.seen("request")
        await turn()
        assert not done.is_set() and lane.rec.flows[0].intercepted
        lane.rec.flows[0].resume()
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")


async def test_where_bodies_are_to_be_looked_at_it_is_kept() -> None:
    async with upstream(echo) as up, lane_with(Uploads(), up.target()) as lane:
        lane.master.options.update(store_streamed_bodies=True)
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 4\r\n\r\nab")
        await lane.rec.seen("server_connected")
        peer.send(b"cd")
        await peer.message()
        assert lane.rec.flows[0].request.raw_content == b"abcd"


async def test_pipelined_uploads_are_answered_in_order() -> None:
    async def script(peer: Peer) -> None:
        while True:
            _, body = await peer.message()
            peer.send(response(body))

    async with upstream(script) as up, lane_with(Uploads(), up.target()) as lane:
        lane.rec.candidates = [up.target()]
        peer = await lane.connect()
        peer.send(HEAD + b"Content-Length: 2\r\n\r\n1")
        await lane.rec.seen("server_connected")
        peer.send(b"1" + b"".join(HEAD + b"Content-Length: 2\r\n\r\n%d%d" % (i, i) for i in range(2, 6)))
        for i in range(1, 6):
            assert (await peer.message())[1] == b"%d%d" % (i, i)


async def test_a_thousand_pieces_cut_anywhere_arrive_whole() -> None:
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        _, body = await peer.message()
        got.append(body)
        peer.send(response())

    body = bytes(range(256)) * 20
    async with upstream(script) as up, lane_with(Uploads(), up.target()) as lane:
        peer = await lane.connect()
        data = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        for at in range(0, len(data), 7):
            peer.send(data[at : at + 7])
            if at % 700 == 0:
                await peer.flush()
        assert (await peer.message())[0].startswith(b"HTTP/1.1 200 ")
        assert got == [body]
