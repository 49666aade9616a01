"""The lane inside the real programs: mitmdump and mitmweb with a script that selects the mode, nothing else listening."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mitmproxy import io
from mitmproxy.http import HTTPFlow

from support.gateway import free_port
from support.wait import eventually

pytestmark = pytest.mark.integration

SCRIPT = """
from weakref import WeakKeyDictionary
from mitmproxy import ctx
from llmtap.core.plan import Plan, Target
from llmtap.lane import default_mode, install, stock
from llmtap.lane.lane import plain_answer

PORT, BACKEND = {port}, {backend}

class Select:
    name = "test.select"
    def load(self, loader):
        self.held = stock.hold_listeners()
        self.plans = WeakKeyDictionary()
        install(plans=self.plans, answer=plain_answer)
        ctx.options.update(mode=[default_mode("127.0.0.1", PORT)])
    def running(self):
        return stock.open_listeners()
    def request(self, flow):
        self.plans[flow] = Plan([Target("a", "127.0.0.1", BACKEND)])
    def responseheaders(self, flow):
        flow.response.stream = flow.response.headers.get("content-type") == "text/event-stream"

addons = [Select()]
"""

#: notes every address anything in the process binds
RUN = """
import sys
def note(event, args):
    if event == "socket.bind" and args[0].family.name.startswith("AF_INET"):
        print("BIND", args[1][0], args[1][1], flush=True)
sys.addaudithook(note)
import mitmproxy.tools.main as tools
getattr(tools, sys.argv[1])(sys.argv[2:])
"""


class Backend:
    """A threaded server: `/slow` answers when told, everything else at once."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.waiting = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as lines:
            while request := lines.readline():
                while lines.readline() not in (b"\r\n", b""):
                    pass
                if b" /slow" in request:
                    self.waiting.set()
                    self.go_on.wait(20)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    def close(self) -> None:
        self.go_on.set()
        self._listener.close()


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    made.close()


@dataclass
class Program:
    process: subprocess.Popen[str]
    port: int
    output: list[str]

    def ask(self, path: str = "/v1/models") -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as reply:
            return bytes(reply.read())

    def bound(self) -> set[tuple[str, int]]:
        return {(host, int(port)) for _, host, port in (line.split() for line in self.output if line.startswith("BIND "))}


@pytest.fixture
def start(backend: Backend, tmp_path: Path) -> Iterator[object]:
    started: list[Program] = []

    def run(tool: str, *args: str) -> Program:
        port = free_port()
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(port=port, backend=backend.port))
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, tool, "-s", str(script), "--set", f"confdir={tmp_path}", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "addons")},
        )
        output: list[str] = []
        assert process.stdout is not None
        stdout = process.stdout
        reader = threading.Thread(target=lambda: output.extend(iter(stdout.readline, "")), daemon=True)
        reader.start()
        program = Program(process, port, output)
        started.append(program)
        eventually(lambda: any("LLM gateway listening" in line for line in output), "\n".join(output))
        return program

    yield run
    for program in started:
        program.process.kill()
        program.process.wait()
        assert program.process.stdout is not None
        program.process.stdout.close()


def test_mitmdump_serves_listens_nowhere_else_and_drains_on_sigterm(start: object, backend: Backend, tmp_path: Path) -> None:
    flows = tmp_path / "flows"
    program: Program = start("mitmdump", "-q", "-w", str(flows), "-v")  # type: ignore[operator]
    assert program.ask() == b"{}"
    answers: list[bytes] = []
    slow = threading.Thread(target=lambda: answers.append(program.ask("/slow")))
    slow.start()
    assert backend.waiting.wait(20)
    program.process.send_signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", program.port), 1).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # it was let in and cut, or nobody came to the door: the listener is just being closed
        return False

    eventually(refused, "still listening")
    assert program.process.poll() is None
    backend.go_on.set()
    slow.join(20)
    assert answers == [b"{}"] and program.process.wait(20) == 0
    assert program.bound() == {("127.0.0.1", program.port)}
    assert not [line for line in program.output if "rror" in line], program.output
    with flows.open("rb") as file:
        saved = [flow.request.path for flow in io.FlowReader(file).stream() if isinstance(flow, HTTPFlow)]
    assert saved == ["/v1/models", "/slow"]


def test_mitmweb_shows_the_lanes_flows(start: object) -> None:
    web = free_port()
    program: Program = start(  # type: ignore[operator]
        "mitmweb", "--no-web-open-browser", "--set", f"web_port={web}", "--set", "web_password=secret"
    )
    assert program.ask("/shown") == b"{}"

    def flows() -> list[dict[str, object]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/flows?token=secret", timeout=20) as reply:
            return list(json.loads(reply.read()))

    (flow,) = eventually(flows, "no flow in mitmweb")
    assert flow["request"]["path"] == "/shown" and flow["response"]["status_code"] == 200  # type: ignore[index]
    assert {port for _, port in program.bound()} == {program.port, web}
