"""What users of mitmproxy know works on the lane: flow files, replays, scripts of their own beside ours, reload, the console."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mitmproxy import io
from mitmproxy.http import HTTPFlow

from support.gateway import MITMDUMP, ROOT, Gateway, free_port, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
MODEL = "sim-small"
CHAT = "/v1/chat/completions"
KEY = "sk-the-backends-own-key"


@pytest.fixture(scope="module")
def sim() -> Iterator[SimHandle]:
    with running_sim(model=MODEL, tokens_per_second=400, ttft_ms=2, api_key=KEY) as running:
        yield running


def config(sim: SimHandle) -> dict[str, Any]:
    return {"backends": [{"name": "a", "url": sim.url, "api_key": KEY}], "routing": {"health_interval_s": 0.5}}


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **more}


def content(body: bytes) -> str:
    """The text of a streamed reply."""
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])


def read(path: Path) -> list[HTTPFlow]:
    with path.open("rb") as file:
        return [flow for flow in io.FlowReader(file).stream() if isinstance(flow, HTTPFlow)]


def prompts(sim: SimHandle) -> list[str]:
    """Of the requests that reached the engine, oldest first."""
    bodies = [json.loads(r["body"]) if isinstance(r["body"], str) else r["body"] for r in sim.requests(CHAT)]
    return [str(body["messages"][0]["content"]) for body in bodies]


def beside(folder: Path, source: str) -> tuple[str, ...]:
    """The options for one more script."""
    path = folder / "other.py"
    path.write_text(source, encoding="utf-8")
    return ("-s", str(path))


# ---- flow files


def saved(sim: SimHandle, folder: Path, *options: str) -> tuple[Path, str]:
    """A flow file of a streamed, a whole and a refused exchange; and the streamed text."""
    path = folder / "flows"
    with running_gateway(folder / "data", config(sim), options=("-w", str(path), *options)) as gateway:
        wait_up(gateway)
        streamed = httpx.post(gateway.url + CHAT, json=chat("streamed", stream=True), headers={"authorization": "Bearer client"})
        whole = httpx.post(gateway.url + CHAT, json=chat("whole"))
        refused = httpx.post(gateway.url + "/sleep")
        assert (streamed.status_code, whole.status_code, refused.status_code) == (200, 200, 404)
        assert gateway.stop() == 0
    return path, content(streamed.content)


def test_a_flow_file_is_read_by_stock_mitmdump_and_holds_no_key_of_a_backend(sim: SimHandle, tmp_path: Path) -> None:
    path, text = saved(sim, tmp_path, "--set", "store_streamed_bodies=true")
    argv = [*MITMDUMP, "-n", "-r", str(path), "--set", f"confdir={tmp_path}", "--set", "flow_detail=3"]
    stock = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert stock.returncode == 0 and "rror" not in stock.stderr, stock.stderr
    assert stock.stdout.count(f"POST http://127.0.0.1:{sim.port}{CHAT}") == 2 and "/sleep" in stock.stdout
    assert KEY.encode() not in path.read_bytes() and b"Bearer client" not in path.read_bytes()
    flows = {
        flow.request.path + str(i): flow
        for i, flow in enumerate(read(path))
        if flow.request.path not in ("/health", "/health/ready")
    }
    by_prompt = {
        json.loads(f.request.content or b"{}").get("messages", [{}])[0].get("content"): f
        for f in flows.values()
        if f.request.content
    }
    streamed, whole = by_prompt["streamed"], by_prompt["whole"]
    assert streamed.response is not None and content(streamed.response.content or b"") == text
    assert whole.response is not None and json.loads(whole.response.content or b"")["choices"][0]["message"]["content"]
    assert sum(len(f.request.raw_content or b"") + len(f.response.raw_content or b"") for f in flows.values() if f.response) > (
        path.stat().st_size - 6000 * len(read(path))
    ), "what is not body is a few kilobytes a flow"


def test_streamed_bodies_are_not_in_the_file_unless_asked_for(sim: SimHandle, tmp_path: Path) -> None:
    path, _ = saved(sim, tmp_path)
    streams = [f for f in read(path) if f.response and "event-stream" in f.response.headers.get("content-type", "")]
    assert len(streams) == 1 and streams[0].response is not None and streams[0].response.raw_content is None


def test_a_flow_file_is_replayed_through_the_gateway(sim: SimHandle, tmp_path: Path) -> None:
    path, _ = saved(sim, tmp_path)
    sim.reset()
    again = tmp_path / "again"
    # only what went to the backend: a stock reader's filter on a stock file
    argv = [*MITMDUMP, "-n", "-r", str(path), "-w", str(again), "--set", f"confdir={tmp_path}", "~u chat/completions"]
    assert subprocess.run(argv, capture_output=True, timeout=60).returncode == 0
    out = tmp_path / "out"
    with running_gateway(tmp_path / "data2", config(sim), options=("-C", str(again), "-w", str(out)), ready=False) as gateway:
        assert gateway.process.wait(30) == 0, gateway.output
        assert sorted(prompts(sim)) == ["streamed", "whole"]
        ends = [r for r in gateway.records() if r["t"] == "end"]
        assert [r["outcome"] for r in ends] == ["ok", "ok"] and {r["backend"] for r in ends} == {"a"}
    assert KEY.encode() not in out.read_bytes()
    assert [f.is_replay for f in read(out)] == ["request", "request"]


# ---- scripts of their own


def test_another_script_sees_changes_and_answers(sim: SimHandle, tmp_path: Path) -> None:
    script = """
from mitmproxy import http

def requestheaders(flow):
    flow.request.headers["x-tenant"] = "blue"

def request(flow):
    if b"answer me yourself" in flow.request.content:
        flow.response = http.Response.make(200, b'{"by":"script"}', {"content-type": "application/json"})
        return
    flow.request.text = flow.request.text.replace("old words", "new words")

def response(flow):
    if not flow.response.stream:
        flow.response.headers["x-seen"] = "yes"
        flow.response.text = flow.response.text.replace("chat.completion", "chat.changed")
"""
    sim.reset()
    with running_gateway(tmp_path / "data", config(sim), options=beside(tmp_path, script)) as gateway:
        wait_up(gateway)
        reply = httpx.post(gateway.url + CHAT, json=chat("old words"))
        assert reply.json()["object"] == "chat.changed" and reply.headers["x-seen"] == "yes"
        assert int(reply.headers["content-length"]) == len(reply.content)
        (seen,) = sim.requests(CHAT)
        assert prompts(sim) == ["new words"] and seen["headers"]["x-tenant"] == "blue"
        own = httpx.post(gateway.url + CHAT, json=chat("answer me yourself"))
        assert own.json() == {"by": "script"} and len(sim.requests(CHAT)) == 1
        assert httpx.post(gateway.url + CHAT, json=chat("old words", stream=True)).text.endswith("data: [DONE]\n\n")
        _, end = gateway.exchange(own.headers["x-request-id"])
        assert end["outcome"] == "ok" and end["attempts"] == 0


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_script_that_raises_stops_neither_requests_nor_policy(sim: SimHandle, tmp_path: Path, first: bool) -> None:
    hooks = ("requestheaders", "request", "responseheaders", "response", "error", "client_connected", "server_connect")
    script = "".join(f"\ndef {hook}(data):\n    raise RuntimeError('on purpose')\n" for hook in hooks)
    options = beside(tmp_path, script)
    # scripts run in the order of the command line; `command` comes before ours
    command, options = ([*MITMDUMP, *options], ()) if first else (MITMDUMP, options)
    with running_gateway(tmp_path / "data", config(sim), command=command, options=options) as gateway:
        wait_up(gateway)
        streamed = httpx.post(gateway.url + CHAT, json=chat("hello", stream=True))
        assert streamed.status_code == 200 and content(streamed.content)
        for path, status in (("/sleep", 404), ("/v1/../sleep", 404)):
            assert httpx.post(gateway.url + path).status_code == status
        assert httpx.post(gateway.url + CHAT, json=chat("x") | {"model": "unknown"}).status_code == 404
        _, end = gateway.exchange(streamed.headers["x-request-id"])
        assert end["outcome"] == "ok" and end["summary"]["choices"][0]["content"] == content(streamed.content)
        assert gateway.stop() == 0


def test_a_script_that_raises_opens_no_stock_mode_either(sim: SimHandle, tmp_path: Path) -> None:
    """mitmproxy's own modes forward what no addon has refused."""
    script = (
        "\ndef requestheaders(flow):\n    raise RuntimeError('on purpose')\n\ndef request(flow):\n    raise RuntimeError('x')\n"
    )
    command = [*MITMDUMP, *beside(tmp_path, script)]
    sim.reset()
    with running_gateway(tmp_path / "data", mode=f"reverse:{sim.url}", command=command) as gateway:
        assert httpx.post(gateway.url + "/sleep").status_code == 404
        assert [r["path"] for r in sim.requests() if r["path"] == "/sleep"] == []


# ---- where it listens


@pytest.mark.parametrize("mode", [None, "reverse"])
def test_an_address_on_the_command_line_is_the_only_one(sim: SimHandle, tmp_path: Path, mode: str | None) -> None:
    """mitmproxy has bound an IP address before it loads a script: that listener must neither stay nor be in the way."""
    port = free_port()
    options: tuple[str, ...] = ("--listen-host", "127.0.0.1", "--listen-port", str(port))
    if mode is not None:
        options = ("--mode", f"reverse:{sim.url}@127.0.0.1:{port}")
    with running_gateway(tmp_path / "data", config(sim), options=options, ready=False) as gateway:
        gateway.port = port
        eventually(lambda: _health(gateway.url), "not up")
        with socket.create_connection(("127.0.0.1", port), 10) as proxied:
            proxied.sendall(f"GET {sim.url}/sim/state HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            assert proxied.recv(65536).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), "an open proxy"
        assert serves(gateway)


# ---- our script goes and comes


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of our script that may be edited, beside a link to the package."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "llmtap").symlink_to(ROOT / "addons" / "llmtap")
    return Path(shutil.copy(ROOT / "addons" / "gateway.py", folder / "gateway.py"))


def edit(script: Path, text: str) -> None:
    """Replaced in one step, with a modification time that is surely newer."""
    later = script.stat().st_mtime + 2
    new = script.with_name("new")
    new.write_text(text, encoding="utf-8")
    os.utime(new, (later, later))
    new.rename(script)


class Stream:
    """A long streamed request in a thread of its own. `begun` is set by its first bytes."""

    def __init__(self, gateway: Gateway, prompt: str) -> None:
        self.begun = threading.Event()
        self.body = b""
        self._thread = threading.Thread(target=self._run, args=(gateway.url + CHAT, prompt))
        self._thread.start()
        assert self.begun.wait(20)

    def _run(self, url: str, prompt: str) -> None:
        body = chat(f"[[sim:tokens=150]] [[sim:tps=40]] {prompt}", stream=True)
        with httpx.stream("POST", url, json=body, timeout=30) as reply:
            self.uid = reply.headers["x-request-id"]
            for piece in reply.iter_raw():
                self.body += piece
                self.begun.set()

    def end(self) -> str:
        """Its whole text."""
        self._thread.join(30)
        assert self.body.endswith(b"data: [DONE]\n\n")
        return content(self.body)


def refuses(gateway: Gateway) -> bool:
    return httpx.post(gateway.url + CHAT, json=chat("refused?")).status_code == 500


def serves(gateway: Gateway) -> bool:
    # where the backend's key is not known to us (`reverse:`), clients bring it
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.post(gateway.url + CHAT, json=chat("served?"), headers=headers).status_code == 200


def test_a_reload_of_the_script_disturbs_nothing(sim: SimHandle, script: Path, tmp_path: Path) -> None:
    with running_gateway(tmp_path / "data", config(sim), script=script) as gateway:
        wait_up(gateway)
        stream = Stream(gateway, "while it reloads")
        before = gateway.metric("llmtap_requests_total")
        mark = "import sys; print('LOADED AGAIN', file=sys.stderr, flush=True)"
        edit(script, script.read_text(encoding="utf-8") + "\n" + mark + "\n")
        eventually(lambda: any("LOADED AGAIN" in line for line in gateway.output), "not reloaded")
        assert serves(gateway) and httpx.post(gateway.url + "/sleep").status_code == 404
        assert gateway.metric("llmtap_requests_total") == before + 2, "counters go on"
        text = stream.end()
        _, end = gateway.exchange(stream.uid)
        assert end["outcome"] == "ok" and end["summary"]["choices"][0]["content"] == text
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", 8080), 1).close()
        assert gateway.stop() == 0
    assert not [line for line in gateway.output if "Traceback" in line or "rror:" in line], gateway.output


@pytest.mark.parametrize("broken", ["this is not Python", "raise RuntimeError('on purpose')", "addons = []", None])
@pytest.mark.parametrize("mode", ["gateway", "reverse"])
def test_a_script_that_breaks_or_vanishes_closes_the_gateway(
    sim: SimHandle, script: Path, tmp_path: Path, broken: str | None, mode: str
) -> None:
    """mitmproxy goes on without it, and a bare proxy would forward everything; mended, it opens again."""
    good = script.read_text(encoding="utf-8")
    stock = f"reverse:{sim.url}" if mode == "reverse" else None
    with running_gateway(tmp_path / "data", config(sim), script=script, mode=stock) as gateway:
        wait_up(gateway)
        stream = Stream(gateway, "while it breaks") if mode == "gateway" else None
        if broken is None:
            script.unlink()
        else:
            edit(script, broken)
        eventually(lambda: refuses(gateway), "still open")
        sim.reset()
        for path in (CHAT, "/sleep", "/v1/models", "/health", "/metrics"):
            reply = (
                httpx.post(gateway.url + path, json=chat("let me in")) if path != "/metrics" else httpx.get(gateway.url + path)
            )
            assert reply.status_code == 500 and reply.json()["error"]["code"] == "internal_error"
        assert prompts(sim) == [] and [r for r in sim.requests() if r["path"] == "/sleep"] == []
        if stream is not None:
            text = stream.end()
            _, end = gateway.exchange(stream.uid)
            assert end["outcome"] == "ok" and end["summary"]["choices"][0]["content"] == text
        if broken is not None:  # mitmproxy watches no script that is gone
            edit(script, good)
            eventually(lambda: serves(gateway), "not open again")
        assert gateway.stop() == 0


# ---- the console


def test_the_console_starts_serves_and_quits(sim: SimHandle, tmp_path: Path) -> None:
    """On a terminal of its own; nothing of ours writes across its screen."""
    port = free_port()
    path = tmp_path / "llmtap.yaml"
    settings = config(sim) | {"server": {"port": port}, "capture": {"dir": str(tmp_path / "data")}}
    path.write_text(json.dumps(settings), encoding="utf-8")
    argv = [
        sys.executable,
        "-c",
        "from mitmproxy.tools.main import mitmproxy; mitmproxy()",
        "-s",
        str(ROOT / "addons/gateway.py"),
    ]
    argv += ["--set", f"llmtap_config={path}", "--set", f"confdir={tmp_path}"]
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    env = {**os.environ, "TERM": "xterm", "PYTHONPATH": ""}
    process = subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal, env=env, start_new_session=True)
    os.close(terminal)
    drawn = bytearray()

    def draw() -> None:
        try:
            while data := os.read(screen, 65536):
                drawn.extend(data)
        except OSError:
            return  # the terminal's last user is gone

    reader = threading.Thread(target=draw, daemon=True)
    reader.start()
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _health(url), f"not up: {bytes(drawn)!r}")
        eventually(lambda: httpx.get(url + "/health/ready").status_code == 200, "no backend")
        assert httpx.post(url + CHAT, json=chat("shown in the console", stream=True)).status_code == 200
        eventually(lambda: b"completions" in drawn, f"not on the screen: {bytes(drawn)!r}")
        assert b"llmtap.request" not in drawn and b'"outcome"' not in drawn
        before = drawn.count(b"Quit")
        os.write(screen, b"q")
        eventually(lambda: drawn.count(b"Quit") > before, "no question")
        os.write(screen, b"y")
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        reader.join(5)
        os.close(screen)


def _health(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.HTTPError:
        return False
