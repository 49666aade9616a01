"""A server that tells a metrics snapshot, for commands that ask a gateway."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextlib.contextmanager
def serving(snapshots: list[Any]) -> Iterator[str]:
    """Its base URL. Each request gets the next snapshot, the last one again and again; None is answered with a 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            snapshot = snapshots.pop(0) if len(snapshots) > 1 else snapshots[0]
            body = json.dumps(snapshot).encode()
            self.send_response(200 if snapshot is not None and self.path == "/internal/metrics" else 500)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
