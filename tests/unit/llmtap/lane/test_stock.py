"""The private names of mitmproxy that the stock modes need, one by one, so that an upgrade says what broke."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys

import pytest
from mitmproxy import http, options
from mitmproxy.addons import proxyserver
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.test import tflow

from llmtap.lane import stock


def test_servers_of_the_proxyserver() -> None:
    assert list(inspect.signature(proxyserver.Servers.update).parameters) == ["self", "modes"]
    addon = proxyserver.Proxyserver()
    assert addon.servers._instances == {}


def test_the_task_that_opens_listeners_is_named() -> None:
    from mitmproxy import master

    assert 'name="setup_servers"' in inspect.getsource(master.Master.run)


def test_http1_server() -> None:
    assert list(inspect.signature(_http1.Http1Server.send).parameters) == ["self", "event"]
    assert list(inspect.signature(_http1.make_error_response).parameters) == ["status_code", "message"]
    assert ErrorCode.CONNECT_FAILED.http_status_code() == 502
    assert ErrorCode.CLIENT_DISCONNECTED.http_status_code() is None
    assert {"stream_id", "message", "code"} <= set(ResponseProtocolError.__dataclass_fields__)


def test_install_and_uninstall() -> None:
    before = (_http1.Http1Server.send, _http1.make_error_response)
    stock.install(lambda request, status, message: http.Response.make(status, b"{}"), lambda request, message: b"")
    try:
        assert _http1.Http1Server.send is not before[0]
        assert _http1.make_error_response(400, "x").startswith(b"HTTP/1.1 400") and _http1.make_error_response(400).endswith(
            b"{}"
        )
    finally:
        stock.uninstall()
    assert (_http1.Http1Server.send, _http1.make_error_response) == before


def test_last_words_take_the_framing_of_the_stream() -> None:
    chunked = http.Response.make(200, b"", {"transfer-encoding": "chunked"})
    assert stock._framed(chunked, b"bye") == b"3\r\nbye\r\n"
    until_close = http.Response.make(200, b"")
    until_close.headers.pop("content-length")
    assert stock._framed(until_close, b"bye") == b"bye"
    assert stock._framed(http.Response.make(200, b"12"), b"bye") == b"", "a fixed length leaves no room"


def test_messages_the_chain_reads() -> None:
    from mitmproxy import flow

    assert flow.Error.KILLED_MESSAGE == "Connection killed."
    assert "Client disconnected." in inspect.getsource(_http1)
    assert "server closed connection" in inspect.getsource(_http1)


def test_a_connection_that_comes_too_early_is_closed() -> None:
    assert list(inspect.signature(ServerInstance.make_top_layer).parameters) == ["self", "context"]
    early = stock._Closed(Context(tflow.tclient_conn(), options.Options()))
    assert list(early.handle_event(events.Start())) == []
    (command,) = early.handle_event(events.DataReceived(early.context.client, b"GET / HTTP/1.1\r\n\r\n"))
    assert isinstance(command, commands.CloseConnection) and command.connection is early.context.client


def test_which_hosts_are_bound_without_a_lookup() -> None:
    assert stock._is_address("127.0.0.1") and stock._is_address("::1")
    assert not stock._is_address("") and not stock._is_address("localhost")


async def test_a_hangup_calls_back_unless_a_terminal_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        def __init__(self, terminal: bool) -> None:
            self.isatty = lambda: terminal

    called = asyncio.Event()
    before = signal.getsignal(signal.SIGHUP)
    try:
        monkeypatch.setattr(stock, "in_console", lambda: False)
        monkeypatch.setattr(sys, "stdin", Stdin(True))
        stock.on_hangup(called.set)
        assert signal.getsignal(signal.SIGHUP) is before
        monkeypatch.setattr(sys, "stdin", Stdin(False))
        stock.on_hangup(called.set)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(called.wait(), 5)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
