"""Free TCP ports for processes that are told theirs on the command line."""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import ExitStack


def free_ports(count: int, *, host: str = "127.0.0.1", avoid: Collection[int] = ()) -> list[int]:
    """`count` different ports that nobody listens on, none of `avoid`.

    The sockets stay open until all are found, so the system cannot hand out the same one twice.
    """
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
            if port not in avoid:
                found.append(port)
    return found
