"""The backends' own metrics on one page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from llmtap.metrics.upstream import BackendMetrics
from llmtap.policy.backends import Backend, Backends

Reply = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reply(await reader.readuntil(b"\r\n\r\n"), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


def answer(body: bytes, head: bytes = b"HTTP/1.1 200 OK") -> Reply:
    async def reply(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    return reply


async def page(total_s: float = 5.0, max_bytes: int = 1 << 20, **ports: int) -> list[str]:
    backends = Backends([Backend(name, "127.0.0.1", port, api_key="k") for name, port in ports.items()])
    return (await BackendMetrics(backends, total_s, max_bytes).page()).decode().splitlines()


async def test_all_backends_on_one_page() -> None:
    async with server(answer(b"# TYPE x counter\nx 1\n")) as a, server(answer(b"# TYPE x counter\nx 2\nbroken\n")) as b:
        lines = await page(a=a, b=b)
    assert 'x{backend="a"} 1' in lines and 'x{backend="b"} 2' in lines
    assert 'llmtap_backend_scrape_up{backend="a"} 1.0' in lines
    assert 'llmtap_backend_scrape_bad_lines{backend="b"} 1.0' in lines


async def test_the_backends_key_is_used_and_nothing_compressed_asked_for() -> None:
    heads = []

    async def reply(request: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(request.lower())
        await answer(b"x 1\n")(request, writer)

    async with server(reply) as port:
        await page(a=port)
    assert b"authorization: bearer k" in heads[0] and b"accept-encoding: identity" in heads[0]


async def test_those_in_trouble_cost_only_their_part() -> None:
    async def hang(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:  # a byte at a time, each well before any read would time out
            writer.write(b"\n")
            await writer.drain()
            await asyncio.sleep(0)

    bomb = answer(b"\x1f\x8b", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip")
    async with (
        server(answer(b"x 1\n")) as fine,
        server(answer(b"no", b"HTTP/1.1 404 Not Found")) as missing,
        server(answer(b"y 1\n" * 300_000)) as huge,
        server(hang) as slow,
        server(bomb) as packed,
        server(answer(b"", b"NONSENSE")) as nonsense,
    ):
        lines = await page(
            2.0, 1 << 20, fine=fine, missing=missing, huge=huge, slow=slow, packed=packed, nonsense=nonsense, gone=1
        )
    up = {line.split('"')[1]: line[-3:] for line in lines if line.startswith("llmtap_backend_scrape_up{")}
    assert up.pop("fine") == "1.0" and set(up.values()) == {"0.0"} and len(up) == 6
    assert 'x{backend="fine"} 1' in lines


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(b"x 3\n")(await reader.readuntil(b"\r\n\r\n"), writer)
        writer.close()

    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(serve, path):
        lines = (await BackendMetrics(Backends([Backend("a", "", 0, uds=path)])).page()).decode().splitlines()
    assert 'x{backend="a"} 3' in lines


async def test_scrapers_share_an_answer() -> None:
    asked = 0

    async def reply(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await answer(b"x 1\n")(request, writer)

    async with server(reply) as port:
        metrics = BackendMetrics(Backends([Backend("a", "127.0.0.1", port)]))
        pages = await asyncio.gather(*(metrics.page() for _ in range(5)))
        assert len(set(pages)) == 1 and asked == 1
        await metrics.page()
        assert asked == 2
