"""What stays when the script goes: the gateway closes instead of becoming a bare proxy.

mitmproxy keeps all user scripts under one element of its addon chain. An exception in one of them skips those after it, and a
script that is edited, breaks or is deleted takes its addon with it: what was refused is then forwarded. So beside the script
there is this addon, an element of its own, which hands every hook to the chain once more. The chain's hooks do nothing the
second time, so usually nothing happens. What a failing script skipped is caught up; and when the script is gone the chain, still
asked through here, refuses what is new and finishes what is running. A reload finds the chain here and takes it up again: no
connection, stream, counter or capture notices.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from mitmproxy import connection, http
from mitmproxy.proxy import server_hooks


class ChainLike(Protocol):
    """What is stood in for. Its hooks are idempotent."""

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None: ...
    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None: ...
    def responseheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None: ...
    def response(self, flow: http.HTTPFlow) -> None: ...
    def error(self, flow: http.HTTPFlow) -> None: ...
    def websocket_end(self, flow: http.HTTPFlow) -> None: ...
    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None: ...
    def client_disconnected(self, client: connection.Client) -> None: ...
    def started(self) -> None: ...
    def end(self) -> None: ...


class Backstop[C: ChainLike]:
    """Nobody removes it, so its `done` is the end of the process."""

    name = "llmtap.backstop"

    def __init__(self, chain: C) -> None:
        self.chain = chain

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        return self.chain.requestheaders(flow)

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        return self.chain.request(flow)

    def responseheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        return self.chain.responseheaders(flow)

    def response(self, flow: http.HTTPFlow) -> None:
        self.chain.response(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        self.chain.error(flow)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.chain.websocket_end(flow)

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        self.chain.server_connect_error(data)

    def client_disconnected(self, client: connection.Client) -> None:
        self.chain.client_disconnected(client)

    def running(self) -> None:
        self.chain.started()  # last of all addons

    def done(self) -> None:
        self.chain.end()
