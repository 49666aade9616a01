import socket

import pytest

from llmtap_launcher.ports import free_ports


def test_all_different_and_free() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    with socket.create_server(("127.0.0.1", found[0])):
        pass
    assert free_ports(0) == []


def test_avoids_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = iter([7001, 7002, 7003, 7004])

    class Offer:
        def __init__(self, family: int) -> None:
            self.port = next(offers)

        def __enter__(self) -> "Offer":
            return self

        def __exit__(self, *exc: object) -> None: ...

        def bind(self, address: tuple[str, int]) -> None:
            assert address == ("127.0.0.1", 0)

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", self.port

    monkeypatch.setattr(socket, "socket", Offer)
    assert free_ports(2, avoid={7001, 7003}) == [7002, 7004]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6() -> None:
    with socket.create_server(("::1", free_ports(1, host="::1")[0]), family=socket.AF_INET6):
        pass
