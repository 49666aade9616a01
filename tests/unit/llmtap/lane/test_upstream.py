import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from mitmproxy.test import tflow

from llmtap.lane.head import HeaderKinds
from llmtap.lane.limits import LaneLimits
from llmtap.lane.pool import Pool
from llmtap.lane.upstream import Failure, Upstream
from support.lane import Peer, response, until, upstream

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def connected(script: Callable[[Peer], Awaitable[None]], **limits: int) -> AsyncIterator[Upstream]:
    async with upstream(script) as up:
        made = LaneLimits(**limits)  # type: ignore[arg-type]
        pool = Pool(asyncio.get_running_loop(), made, HeaderKinds(), lambda name, data: None)
        yield await pool.connect(up.target(), tflow.tclient_conn(), 5)
        pool.close()
        await until(lambda: pool.open_count == 0)


async def test_head_then_pieces_then_end() -> None:
    step = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await step.wait()
        peer.send(b"def")
        await peer.rest()

    async with connected(script) as up:
        up.send(REQUEST, b"", False)
        await up.head()
        assert up.reply.status == 200 and not up.reply.complete
        await until(lambda: up.reply.buffered)
        pieces = [up.reply.take()]
        up.sink = pieces.append
        step.set()
        await up.end()
        assert b"".join(pieces) == b"abcdef" and up.reusable and up.answered
        up.release()
        assert not up.closed and not up.busy


async def test_without_a_reader_the_backend_is_no_longer_read() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 50_000_000)
        await peer.rest()

    async with connected(script, high_water=10_000) as up:
        up.send(REQUEST, b"", False)
        await up.head()
        await until(lambda: up.paused)
        held = up.reply.buffered
        assert held < 1_000_000
        total = len(up.reply.take())
        sizes: list[int] = []
        up.sink = lambda data: sizes.append(len(data))
        await up.end()
        assert total + sum(sizes) == 50_000_000


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(b"", "closed"), (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "closed"), (b"nonsense\r\n\r\n", "protocol")],
)
async def test_failures_say_what_they_are(sent: bytes, reason: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(sent)
        await peer.flush()

    async with connected(script) as up:
        up.send(REQUEST, b"", False)
        with pytest.raises(Failure) as caught:
            await up.end()
        assert caught.value.reason == reason and up.answered == bool(sent) and not up.reusable
        assert b"nonsense" not in str(caught.value).encode()
        with pytest.raises(Failure):
            await up.head()  # and goes on saying it


async def test_a_connection_that_broke_before_anybody_waited() -> None:
    async def script(peer: Peer) -> None:
        peer.reset()

    async with connected(script) as up:
        await until(lambda: up.closed)
        up.send(REQUEST, b"", False)
        with pytest.raises(Failure) as caught:
            await up.head()
        assert caught.value.reason == "reset"


async def test_whoever_fails_it_decides_what_the_waiter_gets() -> None:
    async def script(peer: Peer) -> None:
        await peer.rest()

    async with connected(script) as up:
        up.send(REQUEST, b"", False)
        waiting = asyncio.ensure_future(up.head())
        await asyncio.wait([waiting], timeout=0)
        up.fail(KeyError("mine"))
        with pytest.raises(KeyError):
            await waiting
        await until(lambda: up.closed)


async def test_a_large_body_goes_out_whole() -> None:
    async def script(peer: Peer) -> None:
        _, body = await peer.message()
        peer.send(response(b"%d" % len(body)))
        await peer.rest()

    async with connected(script) as up:
        body = b"x" * 1_000_000
        up.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body), body, False)
        await up.end()
        assert up.reply.take() == b"1000000"


async def test_a_closing_response_is_not_used_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(response(b"1", headers=b"Connection: close\r\n"))
        await peer.rest()

    async with connected(script) as up:
        up.send(REQUEST, b"", False)
        await up.end()
        assert not up.reusable
        up.release()
        await until(lambda: up.closed)


@pytest.mark.parametrize(
    ("sent", "enough"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\n", True),
    ],
)
async def test_the_first_piece_of_a_good_body_can_be_waited_for(sent: bytes, enough: bool) -> None:
    step = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.send(sent)
        await peer.flush()
        await step.wait()

    async with connected(script) as up:
        up.send(REQUEST, b"", False)
        waiting = asyncio.ensure_future(up.head(first=True))
        await until(lambda: up.reply.head_done)
        await asyncio.wait([waiting], timeout=0.01 if not enough else 10)
        assert waiting.done() is enough
        step.set()  # the script ends: the connection closes
        if enough:
            await waiting
        else:
            with pytest.raises(Failure):
                await waiting
