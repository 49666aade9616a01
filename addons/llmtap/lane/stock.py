"""What has to be bent in mitmproxy's stock modes: who listens, and what an error answer looks like.

**Listeners.** mitmproxy loads scripts after it has begun to open its listener, by default an open proxy on all interfaces.
`hold_listeners` stops that before the socket exists, or where it exists already (an IP address needs no lookup) before it serves
anybody; `open_listeners` opens those of the options as they are then.
Private API touched: the task named `setup_servers`, `Proxyserver.servers`, `Servers.update`, `Servers._instances`,
`ServerInstance.make_top_layer`.

**Errors.**

In stock modes (`reverse:` ...) mitmproxy answers a failed upstream itself, in HTML, after the `error` hook and without asking
any addon; and a stream whose upstream died just stops. Both are replaced, by wrapping the two functions that write them: JSON in
the client's dialect, and last words for a broken stream.
Private API touched: `mitmproxy.proxy.layers.http._http1`: `Http1Server.send`, `Http1Server.request/response/conn`,
`make_error_response` (module global).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer, mode_specs
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._events import ResponseProtocolError

#: (request or None when its head was unreadable, status, mitmproxy's message) -> the whole answer
Answer = Callable[[http.Request | None, int, str], http.Response]
#: (request, mitmproxy's message) -> the last bytes of a broken stream, or b""
LastWords = Callable[[http.Request, str], bytes]

_original_send = _http1.Http1Server.send
_original_error = _http1.make_error_response


def hold_listeners() -> bool:
    """Keep mitmproxy from opening its listener. True when it was about to; call while the script loads."""
    proxyserver = ctx.master.addons.get("proxyserver")
    for task in asyncio.all_tasks():
        if task.get_name().startswith("setup_servers") and not task.done() and proxyserver is not None:
            instances = proxyserver.servers._instances
            if any(_is_address(mode.listen_host(ctx.options.listen_host)) for mode in instances):
                # cancelled now, it would forget the socket, which would listen for ever
                for instance in instances.values():
                    instance.make_top_layer = _Closed
            else:
                task.cancel()
                proxyserver.servers._instances = {}
            return True
    return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Closed(layer.Layer):
    """A connection that came too early: its first bytes end it (mitmproxy cannot close one that is just starting)."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.ConnectionEvent):
            yield commands.CloseConnection(self.context.client)


async def open_listeners() -> None:
    """Open the listeners of the options as they are now. A failure is logged as an error, which ends a starting mitmproxy."""
    servers = ctx.master.addons.get("proxyserver").servers
    for instance in servers._instances.values():
        vars(instance).pop("make_top_layer", None)
    await servers.update([mode_specs.ProxyMode.parse(m) for m in ctx.options.mode])


def in_console() -> bool:
    """Whether this is mitmproxy's console, which draws on the whole terminal."""
    return hasattr(ctx.master, "prompt_for_exit")


def on_terminate(call: Callable[[], None]) -> None:
    """Call this on SIGTERM, and on SIGINT unless mitmproxy asks the user first (the console does)."""
    loop = asyncio.get_running_loop()
    signals = [signal.SIGTERM] if in_console() else [signal.SIGTERM, signal.SIGINT]
    for number in signals:
        # replaces mitmproxy's own; where loops know no signals (Windows), or off the main thread, that one stays
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, call)


def on_hangup(call: Callable[[], object]) -> None:
    """Call this on SIGHUP, unless a terminal is ours: then it means that the terminal is gone, and ends us."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or in_console() or (sys.stdin is not None and sys.stdin.isatty()):
        return
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(hangup, call)


def install(answer: Answer, last_words: LastWords) -> None:
    """Use these two for every stock HTTP/1 client connection of this process, until `uninstall`."""

    def send(self: _http1.Http1Server, event: Any) -> Iterator[Any]:
        if isinstance(event, ResponseProtocolError) and self.conn.state & ConnectionState.CAN_WRITE:
            status = event.code.http_status_code()
            if status is not None and self.request is not None:
                if self.response is None:
                    data = http1.assemble_response(answer(self.request, status, event.message))
                else:
                    data = _framed(self.response, last_words(self.request, event.message))
                if data:
                    yield commands.SendData(self.conn, data)
                yield commands.CloseConnection(self.conn)
                return
        yield from _original_send(self, event)

    def make_error_response(status_code: int, message: str = "") -> bytes:
        return bytes(http1.assemble_response(answer(None, status_code, message)))

    _http1.Http1Server.send = send  # type: ignore[method-assign,assignment]
    _http1.make_error_response = make_error_response


def uninstall() -> None:
    """Put mitmproxy's own functions back."""
    _http1.Http1Server.send = _original_send  # type: ignore[method-assign]
    _http1.make_error_response = _original_error


def _framed(response: http.Response, data: bytes) -> bytes:
    """`data` as a piece of this response's body; nothing when its framing leaves no room (a fixed length)."""
    if not data or "content-length" in response.headers:
        return b""
    if "chunked" in response.headers.get("transfer-encoding", "").lower():
        return b"%x\r\n%b\r\n" % (len(data), data)
    return data
