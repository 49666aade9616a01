"""TLS files that serve and that do not; the port that is open only while it is of use."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from llmtap.core.config import Server
from llmtap.core.errors import ConfigError
from llmtap.lane.listener import server_tls
from llmtap.listening import CompatListener, read_tls, try_address
from support.certificate import write_certificate


def test_without_a_certificate_it_is_plain() -> None:
    assert read_tls(Server(), server_tls) is None


def test_files_that_serve(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    assert isinstance(read_tls(Server(tls_cert=cert, tls_key=key), server_tls), ssl.SSLContext)
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    assert isinstance(read_tls(Server(tls_cert=both), server_tls), ssl.SSLContext)


def test_files_that_do_not(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path / "a")
    _, other = write_certificate(tmp_path / "b")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nothing")
    locked = tmp_path / "locked.pem"
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
        )
    )
    for server, words in (
        (Server(tls_cert=tmp_path / "no", tls_key=key), "server.tls_cert: "),
        (Server(tls_cert=cert, tls_key=tmp_path / "no"), "server.tls_key: "),
        (Server(tls_cert=cert, tls_key=other), "does not belong"),
        (Server(tls_cert=nonsense, tls_key=key), "PEM"),
        (Server(tls_cert=cert), "PEM"),
        (Server(tls_cert=cert, tls_key=locked), "encrypted"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_tls(server, server_tls)
        assert words in str(caught.value) and "\n" not in str(caught.value), server


def test_an_address_that_can_be_had_and_one_that_cannot() -> None:
    try_address("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"server: cannot listen on 127.0.0.1:{port}: "):
            try_address("127.0.0.1", port)
    try_address("127.0.0.1", port)
    with pytest.raises(ConfigError):
        try_address("no.such.host.invalid", 5)


class Port:
    def __init__(self) -> None:
        self.open = 0
        self.broken = False
        self.asked: list[tuple[str, int]] = []

    def listen(self, host: str, port: int) -> Port:
        self.asked.append((host, port))
        if self.broken:
            raise OSError(98, "Address already in use")
        self.open += 1
        return self

    def close(self) -> None:
        self.open -= 1


async def test_it_follows() -> None:
    port = Port()
    listener = CompatListener("127.0.0.1", 5000, port.listen)
    for healthy, is_open in ((False, 0), (True, 1), (True, 1), (False, 0), (False, 0), (True, 1)):
        listener.follow(healthy)
        assert port.open == is_open == listener.is_open
    listener.close()
    listener.close()
    assert port.open == 0 and port.asked == [("127.0.0.1", 5000)] * 2


async def test_a_port_that_is_taken_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("llmtap.listening._AGAIN_S", 0.001)
    port = Port()
    port.broken = True
    listener = CompatListener("127.0.0.1", 5000, port.listen)
    listener.follow(True)
    async with asyncio.timeout(5):
        while len(port.asked) < 3:
            await asyncio.sleep(0)
        port.broken = False
        while not listener.is_open:
            await asyncio.sleep(0)
    assert caplog.text.count("cannot listen on 127.0.0.1:5000: Address already in use") == 1
    listener.close()
    port.broken = True
    listener.follow(True)
    listener.close()
    asked = len(port.asked)
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.02, done.set_result, None)
    await done
    assert len(port.asked) == asked


def test_an_address_that_others_share() -> None:
    with socket.socket() as sibling:
        sibling.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sibling.bind(("127.0.0.1", 0))
        sibling.listen()
        port = sibling.getsockname()[1]
        try_address("127.0.0.1", port, reuse_port=True)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            try_address("127.0.0.1", port)
