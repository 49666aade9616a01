"""What the gateway listens on, and backends that listen on no port: TLS, the compat port, UNIX sockets."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.certificate import subject, trusting, write_certificate
from support.gateway import ROOT, SCRIPT, free_port, running_gateway, wait_up
from support.lane import Peer, response, upstream
from support.sim import running_sim
from support.thread import in_thread
from support.wait import eventually

pytestmark = pytest.mark.integration
CHAT = {"model": "sim-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("master", [False, True])
def test_the_compat_port_is_open_while_a_backend_is_healthy(tmp_path: Path, master: bool) -> None:
    compat, engine = free_port(), free_port()
    config = {
        "backends": [{"name": "a", "url": f"http://127.0.0.1:{engine}"}],
        "server": {"compat_port": compat, "drain_timeout_s": 1},
        "routing": {"health_interval_s": 0.2},
    }
    with running_gateway(tmp_path, config, master=master) as gateway:
        eventually(lambda: "down" in httpx.get(f"{gateway.url}/health/ready").text, "the backend is not looked at")
        assert not answers(compat)
        with running_sim(port=engine):
            eventually(lambda: answers(compat), "the port does not open")
            url = f"http://127.0.0.1:{compat}"
            assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
            assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        eventually(lambda: not answers(compat), "the port does not close")
        assert httpx.get(f"{gateway.url}/health").status_code == 200, "the other one stays"
        with running_sim(port=engine):
            eventually(lambda: answers(compat), "the port does not open again")
    assert not answers(compat)


@pytest.mark.parametrize("master", [False, True])
def test_tls(tmp_path: Path, master: bool) -> None:
    cert, key = write_certificate(tmp_path / "tls")
    compat = free_port()
    with running_sim() as sim:
        config = {
            "backends": [{"name": "a", "url": sim.url}],
            "server": {"tls_cert": str(cert), "tls_key": str(key), "compat_port": compat},
        }
        with (
            running_gateway(tmp_path / "data", config, master=master, ready=False) as gateway,
            httpx.Client(verify=trusting(tmp_path / "tls")) as client,
        ):
            eventually(lambda: answers(gateway.port) and answers(compat), "the ports do not open")
            for port in (gateway.port, compat):
                url = f"https://localhost:{port}"
                with client.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
                    assert reply.status_code == 200 and b"data: [DONE]" in reply.read()
                assert subject(port, tmp_path / "tls")
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"http://localhost:{gateway.port}/health")
            assert client.get(f"https://localhost:{gateway.port}/health").status_code == 200


def test_llmtap_knows_its_gateway_behind_tls(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path / "tls")
    with running_sim() as sim:
        server = {"tls_cert": str(cert), "tls_key": str(key)}
        config = {"backends": [{"name": "a", "url": sim.url}], "server": server, "capture": {"dir": str(tmp_path / "data")}}
        with running_gateway(tmp_path / "data", config, ready=False) as gateway:
            eventually(lambda: answers(gateway.port), "the port does not open")
            argv = [sys.executable, "-m", "llmtap_launcher", "status", "--config", str(tmp_path / "data" / "llmtap.yaml")]
            env = {"PYTHONPATH": f"{ROOT / 'addons'}:{ROOT / 'launcher'}", "PATH": "/usr/bin:/bin"}
            shown = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60)
            assert shown.returncode == 0 and sim.url in shown.stdout, shown


@pytest.mark.parametrize(
    ("server", "words"),
    [({"tls_cert": "nowhere.pem"}, "server.tls_cert: nowhere.pem cannot be read: No such file or directory")],
)
@pytest.mark.parametrize("master", [False, True])
def test_bad_tls_files_are_told_and_nothing_opens(tmp_path: Path, server: dict[str, Any], words: str, master: bool) -> None:
    with running_gateway(tmp_path, {"server": server}, master=master, ready=False) as gateway:
        assert gateway.process.wait(timeout=30) == 1
        eventually(lambda: words in "".join(gateway.output), "it does not say why")
        assert "Traceback" not in "".join(gateway.output)


async def engine(peer: Peer) -> None:
    while True:
        head = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), None)
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
        await peer.exactly(int(length or 0))
        if b"/v1/chat" in head:
            peer.send(response(head.split(b"ost: ")[1].split(b"\r\n")[0]))
        else:
            peer.send(response(b'{"object":"list","data":[{"id":"m","object":"model"}]}'))


@pytest.mark.parametrize("scheme", ["unix:", "unix://", "http+unix://"])
async def test_a_backend_on_a_unix_socket(tmp_path: Path, scheme: str) -> None:
    path = str(tmp_path / "vllm.sock")
    url = scheme + (path.replace("/", "%2F") if scheme.startswith("http") else path)
    config = {"backends": [{"name": "a", "url": url}], "routing": {"health_interval_s": 0.2}}
    async with (
        in_thread(running_gateway(tmp_path / "data", config, master=True)) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        assert (await client.get("/health/ready")).status_code == 503
        async with upstream(engine, path=path):
            await asyncio.to_thread(wait_up, gateway)
            assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["m"]
            for _ in range(2):
                reply = await client.post("/v1/chat/completions", json={"model": "m", "messages": []})
                assert reply.status_code == 200 and reply.content == b"localhost"
                assert reply.headers["x-llmtap-backend"] == "a"
            assert (await client.get("/stats")).json()["backends"][0]["url"] == f"unix://{path}"
            _, end = await asyncio.to_thread(gateway.last)
            assert end["backend"] == "a" and end["outcome"] == "ok"


def test_a_stock_mode_says_that_it_knows_no_unix_sockets(tmp_path: Path) -> None:
    config = tmp_path / "llmtap.yaml"
    config.write_text("backends: [{name: a, url: 'unix:///run/vllm.sock'}]\n")
    argv = [sys.executable, "-c", "from mitmproxy.tools.main import mitmdump; mitmdump()", "-s", str(SCRIPT)]
    argv += ["--mode", f"socks5@127.0.0.1:{free_port()}", "--set", f"llmtap_config={config}", "--set", "llmtap_writer=false"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "backends: a: a UNIX socket is reached in the gateway mode only; start without --mode" in said
    assert "Traceback" not in said


def test_two_gateways_share_a_port(tmp_path: Path) -> None:
    """What `server.workers` stands on: SO_REUSEPORT, asked for by whoever makes the listener."""
    script = tmp_path / "gateway_reuse.py"
    script.write_text(
        "from llmtap.lane import lane as lanes\n"
        "from mitmproxy import ctx\n"
        "from llmtap.chain import gateway\n"
        "class Reuse:\n"
        "    name = 'test.reuse'\n"
        "    def configure(self, updated):\n"
        "        lanes.lane_of(ctx.master).reuse_port = True\n"
        "addons = [gateway(), Reuse()]\n"
    )
    with running_sim() as sim:
        config = {"backends": [{"name": "a", "url": sim.url}]}
        port = free_port()
        env = {"PYTHONPATH": str(ROOT / "addons")}
        with (
            running_gateway(tmp_path / "one", config, port=port, script=script, env=env) as one,
            running_gateway(tmp_path / "two", config, port=port, script=script, env=env) as two,
        ):
            assert one.process.poll() is None and two.process.poll() is None

            def asked() -> bool:
                httpx.get(f"http://127.0.0.1:{port}/v1/chat/completions")
                return bool(one.records()) and bool(two.records())

            eventually(asked, "one of the two never gets a connection")
