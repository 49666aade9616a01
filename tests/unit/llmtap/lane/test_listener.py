import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from llmtap.lane.listener import Listener, bind, server_tls


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


async def read(port: int, host: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_accepts_a_burst_and_closes() -> None:
    listener = Listener(bind("127.0.0.1", 0), Greeter)
    assert listener.addresses == (("127.0.0.1", listener.port),) and not listener.closed
    assert await asyncio.gather(*(read(listener.port) for _ in range(300))) == [b"hello"] * 300
    listener.close()
    listener.close()
    assert listener.closed
    with pytest.raises(ConnectionRefusedError):
        await read(listener.port)


async def test_one_too_many_is_told_and_closed() -> None:
    full = False
    listener = Listener(bind("127.0.0.1", 0), Greeter, full=lambda: full, refusal=b"no room")
    assert await read(listener.port) == b"hello"
    full = True
    assert await read(listener.port) == b"no room"
    full = False
    assert await read(listener.port) == b"hello"
    listener.close()


async def test_out_of_file_descriptors_means_waiting_not_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(bind("127.0.0.1", 0), Greeter)
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()
    soon: list[float] = []

    class Broken:
        def accept(self) -> None:
            failed.set()
            raise OSError(24, "Too many open files")

    (sock,) = listener._sockets
    monkeypatch.setattr(loop, "call_later", lambda delay, call, *args: (soon.append(delay), loop.call_soon(call, *args))[1])
    monkeypatch.setattr(loop, "remove_reader", lambda s, real=loop.remove_reader: real(sock))
    monkeypatch.setattr(loop, "add_reader", lambda s, call, arg, real=loop.add_reader: real(sock, call, sock))
    listener._accept(Broken())  # type: ignore[arg-type]
    assert failed.is_set() and soon == [1.0]
    assert await read(listener.port) == b"hello"  # and goes on
    listener.close()


def test_a_name_with_two_addresses_listens_on_both_with_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: infos)
    sockets = bind("some.name", 0)
    names = [s.getsockname() for s in sockets]
    for sock in sockets:
        sock.close()
    assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2"] and names[0][1] == names[1][1]


def test_an_address_in_use_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        infos = [(socket.AF_INET, 1, 6, "", (host, port)) for host in ("127.0.0.1", "127.0.0.2")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: infos)
        with pytest.raises(OSError):
            bind("some.name", port)
        with socket.create_server(("127.0.0.1", port)):
            pass  # the first one was given back


def test_every_address_and_brackets() -> None:
    for host in ("", "[::1]" if socket.has_ipv6 else "127.0.0.1"):
        sockets = bind(host, 0)
        assert sockets
        for sock in sockets:
            sock.close()


def test_two_processes_can_share_a_port_when_told_to() -> None:
    (first,) = bind("127.0.0.1", 0, reuse_port=True)
    (second,) = bind("127.0.0.1", first.getsockname()[1], reuse_port=True)
    first.close()
    second.close()


def test_bad_certificate_files(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        server_tls(str(tmp_path / "none"), str(tmp_path / "none"))
    (tmp_path / "bad").write_text("not a certificate")
    with pytest.raises(ssl.SSLError):
        server_tls(str(tmp_path / "bad"), str(tmp_path / "bad"))
