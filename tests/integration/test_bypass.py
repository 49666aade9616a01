"""Nobody gets past the gate: every attempt is refused, and asserted at the backend, none arrives there or anywhere else."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.bypass import attempts
from support.gateway import free_port, running_gateway, wait_up

pytestmark = pytest.mark.integration
CHECKED = {("GET", "/health"), ("GET", "/v1/models"), ("GET", "/is_sleeping"), ("GET", "/is_paused")}


class Trap(BaseHTTPRequestHandler):
    """Answers everything with 200, notes it all."""

    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        method, _, rest = self.raw_requestline.decode("latin-1").strip().partition(" ")
        self.server.reached.append((method, rest.rpartition(" ")[0]))  # type: ignore[attr-defined]
        return super().parse_request()

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        out = b'{"object":"list","data":[{"id":"m","object":"model"}],"is_sleeping":false,"is_paused":false}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(out)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(out)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_TRACE = do_CONNECT = _answer

    def log_message(self, *args: Any) -> None: ...


@contextlib.contextmanager
def trap() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """A port and what has reached it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Trap)
    server.reached = reached = []  # type: ignore[attr-defined, var-annotated]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], reached
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(request)
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(65536):
                data += piece
    return data


@pytest.mark.parametrize("how", ["lane", "stock"])
def test_every_attempt_is_refused_and_none_arrives(how: str, tmp_path: Path) -> None:
    with trap() as (backend, reached), trap() as (foreign, elsewhere):
        config = {"backends": [{"name": "a", "url": f"http://127.0.0.1:{backend}"}], "logging": {"request_log": False}}
        mode = None if how == "lane" else f"reverse:http://127.0.0.1:{backend}"
        with running_gateway(tmp_path, config, mode=mode, port=free_port()) as gateway:
            wait_up(gateway)
            tried = 0
            passed = []
            for name, request in attempts(gateway.port, backend, foreign):
                tried += 1
                data = answer(gateway.port, request)
                status = re.match(rb"HTTP/1\.1 (\d{3}) ", data)
                if data and (status is None or not (400 <= int(status[1]) < 500 or status[1] == b"501")):
                    passed.append((name, data[:200]))
            assert passed == []
            assert tried > 1500
            assert set(reached) <= CHECKED, "something reached the backend"
            assert elsewhere == [], "something reached a port that is not ours to offer"
            # and the traps do catch what gets through
            assert httpx.post(f"{gateway.url}/v1/chat/completions", json={"model": "m", "messages": []}).status_code == 200
            assert ("POST", "/v1/chat/completions") in reached
