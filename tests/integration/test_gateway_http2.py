"""HTTP/2 and TLS clients, served through mitmproxy's own `reverse:` mode by the same addons."""

from __future__ import annotations

import asyncio
import shlex
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.certificate import write_certificate
from support.gateway import Gateway, running_gateway, wait_up
from support.sim import SimHandle, running_sim

pytestmark = pytest.mark.integration
CHAT = "/v1/chat/completions"


class PrefersHttp2(ssl.SSLContext):
    """httpx offers HTTP/1.1 first, and mitmproxy takes what a client offers first. curl, Go and browsers offer HTTP/2 first."""

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        super().set_alpn_protocols(sorted(alpn_protocols))
        assert "h2" not in alpn_protocols or sorted(alpn_protocols)[0] == "h2"


def trusted(folder: Path) -> ssl.SSLContext:
    context = PrefersHttp2(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(str(folder / "test-ca-cert.pem"))
    return context


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, SimHandle, ssl.SSLContext]]:
    folder = tmp_path_factory.mktemp("http2")
    cert, key = write_certificate(folder / "tls")
    both = folder / "tls" / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    with (
        running_sim(tokens_per_second=400, ttft_ms=5) as sim,
        running_gateway(folder / "data", mode=f"reverse:{sim.url}", options=("--certs", f"*={both}")) as gateway,
    ):
        wait_up(gateway)
        yield gateway, sim, trusted(folder / "tls")


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "sim-small", "messages": [{"role": "user", "content": prompt}], **more}


def base(gateway: Gateway) -> str:
    return f"https://localhost:{gateway.port}"


@pytest.mark.parametrize("version", ["HTTP/2", "HTTP/1.1"])
def test_a_stream_over_tls(served: tuple[Gateway, SimHandle, ssl.SSLContext], version: str) -> None:
    gateway, sim, tls = served
    direct = httpx.post(f"{sim.url}{CHAT}", json=chat("rivers", max_tokens=30)).json()
    with httpx.Client(http2=version == "HTTP/2", verify=tls, base_url=base(gateway)) as client:
        with client.stream("POST", CHAT, json=chat("rivers", max_tokens=30, stream=True)) as reply:
            assert reply.http_version == version and reply.status_code == 200
            body = b"".join(reply.iter_raw())
        assert body.endswith(b"data: [DONE]\n\n")
        begin, end = gateway.exchange(reply.headers["x-request-id"])
        assert begin["stream"] is True and end["outcome"] == "ok" and end["ttft_ms"] > 0
        assert end["summary"]["choices"][0]["content"] == direct["choices"][0]["message"]["content"]
        assert end["summary"]["usage"]["source"] == "upstream", "asked for and withheld here too"
        assert b'"usage":{' not in body
        assert client.get("/health").http_version == version
        refused = client.post("/sleep", json={})
        assert refused.status_code == 404 and refused.json()["error"]["code"] == "path_not_allowed"


async def test_many_streams_over_one_connection(served: tuple[Gateway, SimHandle, ssl.SSLContext]) -> None:
    gateway, _, tls = served
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(http2=True, verify=tls, base_url=base(gateway), limits=limits, timeout=60) as client:
        replies = await asyncio.gather(*(client.post(CHAT, json=chat(f"number {n}", stream=True)) for n in range(20)))
    assert {r.http_version for r in replies} == {"HTTP/2"}
    assert all(r.status_code == 200 and r.content.endswith(b"data: [DONE]\n\n") for r in replies)
    assert len({r.headers["x-request-id"] for r in replies}) == 20
    for reply in replies:
        _, end = await asyncio.to_thread(gateway.exchange, reply.headers["x-request-id"])
        assert end["outcome"] == "ok"


async def test_a_client_that_leaves(served: tuple[Gateway, SimHandle, ssl.SSLContext]) -> None:
    gateway, _, tls = served
    async with httpx.AsyncClient(http2=True, verify=tls, base_url=base(gateway)) as client:
        body = chat("[[sim:tokens=2000]] [[sim:tps=100]] endless", stream=True, max_tokens=2000)
        async with client.stream("POST", CHAT, json=body) as reply:
            uid = reply.headers["x-request-id"]
            assert reply.http_version == "HTTP/2"
            async for _ in reply.aiter_raw():
                break
    _, end = await asyncio.to_thread(gateway.exchange, uid)
    assert end["outcome"] == "client_abort" and end["status"] == 499 and end["summary"]["choices"][0]["content"]


def test_the_official_sdk_over_http_2(served: tuple[Gateway, SimHandle, ssl.SSLContext]) -> None:
    gateway, _, tls = served
    with (
        httpx.Client(http2=True, verify=tls) as http,
        openai.OpenAI(base_url=f"{base(gateway)}/v1", api_key="x", http_client=http, max_retries=0) as sdk,
    ):
        stream = sdk.chat.completions.create(
            model="sim-small", messages=[{"role": "user", "content": "lakes"}], stream=True, max_tokens=20
        )
        assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def test_plain_clients_share_the_port(served: tuple[Gateway, SimHandle, ssl.SSLContext], tmp_path: Path) -> None:
    gateway, _, _ = served
    assert httpx.post(f"{gateway.url}{CHAT}", json=chat("plain")).status_code == 200


PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")


def test_the_command_of_the_page(served: tuple[Gateway, SimHandle, ssl.SSLContext], tmp_path: Path) -> None:
    """As the page has it, but for the ports and the folder of the certificate."""
    (line,) = [line for line in PAGE.splitlines() if "--certs '" in line]
    words = shlex.split(line)
    assert words[:3] == ["mitmdump", "-s", "addons/gateway.py"] and words[4] == "reverse:http://127.0.0.1:8081"
    write_certificate(tmp_path / "tls")
    (tmp_path / "gateway.pem").write_bytes(
        (tmp_path / "tls" / "key.pem").read_bytes() + (tmp_path / "tls" / "cert.pem").read_bytes()
    )
    _, sim, _ = served
    certs = words[5:]
    with running_gateway(tmp_path, mode=f"reverse:{sim.url}", options=tuple(certs)) as gateway:
        wait_up(gateway)
        with httpx.Client(http2=True, verify=trusted(tmp_path / "tls"), base_url=base(gateway)) as client:
            reply = client.post(CHAT, json=chat("page"))
            assert reply.status_code == 200 and reply.http_version == "HTTP/2"
