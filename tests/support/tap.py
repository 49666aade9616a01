"""A TCP forwarder that keeps what passed: the bytes a backend really sent, to compare with what a client received."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from support.gateway import free_port


@dataclass
class Tap:
    """Listens on `port`; `replies` holds, per connection in the order of their arrival, what the backend sent."""

    port: int
    replies: list[bytearray] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def tapped(backend_port: int) -> Iterator[Tap]:
    """Forward a free port to `backend_port` of this machine."""
    tap = Tap(free_port())
    listener = socket.create_server(("127.0.0.1", tap.port))
    sockets: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket, keep: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if keep is not None:
                    keep += data
                sink.sendall(data)
        for s in (source, sink):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", backend_port))
                sockets.extend((client, server))
                kept = bytearray()
                tap.replies.append(kept)
                threading.Thread(target=pump, args=(client, server, None), daemon=True).start()
                threading.Thread(target=pump, args=(server, client, kept), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield tap
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=5)
        for s in sockets:
            s.close()
