import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmtap_launcher.health import file_ready, http_ready, http_status, line_ready, look, reachable
from llmtap_launcher.process import Started

NOW = Started(1, 0.0, ())


@asynccontextmanager
async def server(answer: bytes, seen: list[str] | None = None) -> AsyncIterator[str]:
    """Answers every connection with the same bytes; gives its base URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head.decode())
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def reply(status: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n".encode() + data


async def test_status_of_a_get() -> None:
    seen: list[str] = []
    async with server(reply("503 Loading", {}), seen) as url:
        assert await http_status(f"{url}/health?x=1") == 503
        assert await http_ready(f"{url}/health")(NOW) is False
    assert seen[0].startswith(f"GET /health?x=1 HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n")
    async with server(b"HTTP/1.0 200 OK\r\n\r\n") as url:
        assert await http_status(url) == 200
        assert await http_ready(url)(NOW) is True
    assert await http_status(url) is None  # nobody there any more


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n", b"x" * 100_000])
async def test_what_is_no_http_is_no_answer(answer: bytes) -> None:
    async with server(answer) as url:
        assert await http_status(url) is None


async def test_silence_ends_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        assert await http_status(f"http://127.0.0.1:{port}/", timeout_s=0.05) is None


async def test_a_line_of_output() -> None:
    probe = line_ready(r"listening on :\d+")
    assert not await probe(Started(1, 0.0, ["starting"]))
    assert await probe(Started(1, 0.0, ["starting", "now listening on :80"]))


async def test_a_fresh_file(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    probe = file_ready(path)
    with pytest.raises(FileNotFoundError):  # which the state machine takes for "not yet"
        await probe(Started(1, time.time(), ()))
    path.write_text("x")
    assert await probe(Started(1, time.time(), ()))
    os.utime(path, (1.0, 1.0))
    assert not await probe(Started(1, time.time(), ()))
    path.write_text("")
    assert not await probe(Started(1, time.time(), ()))


def test_where_to_reach_a_listener() -> None:
    assert reachable("0.0.0.0") == "127.0.0.1"
    assert reachable("::") == "[::1]"
    assert reachable("[::1]") == "[::1]"
    assert reachable("example.org") == "example.org"


async def test_a_look_at_vllm_and_at_ollama() -> None:
    seen: list[str] = []
    async with server(reply("200 OK", {"data": [{"id": "a"}, {"id": "b"}]}), seen) as url:
        found = await look(f"{url}/v1", api_key="sk-1")
        assert (found.healthy, found.models) == (True, ("a", "b"))
    assert seen[0].startswith("GET /v1/models ")
    assert "authorization: bearer sk-1" in seen[0].lower()
    async with server(reply("200 OK", {"models": [{"name": "llama"}]}), seen) as url:
        assert (await look(url, "ollama")).models == ("llama",)
    assert seen[1].startswith("GET /api/tags ")


async def test_a_look_that_finds_nothing_good() -> None:
    async with server(reply("401 No", {})) as url:
        assert await look(url) == await look(url)
        assert (await look(url)).why == "answers 401"
    async with server(reply("200 OK", ["?"])) as url:
        assert (await look(url)).why == "answers something else than a list of models"
    assert "connection" in ((await look(url)).why or "").lower()
