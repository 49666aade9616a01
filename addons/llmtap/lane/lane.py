"""What all connections of one mitmproxy share: hooks, pool, limits, listeners; how it opens, drains and ends."""

from __future__ import annotations

import asyncio
import logging
import ssl
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mitmproxy import http
from mitmproxy.master import Master
from mitmproxy.proxy.mode_specs import ProxyMode

from llmtap.core.attached import Attached
from llmtap.core.errors import ApiError, dialect_of, error_body
from llmtap.core.plan import Plan
from llmtap.lane import mitm
from llmtap.lane.client import ClientConnection
from llmtap.lane.dispatch import Dispatcher
from llmtap.lane.head import HeaderKinds
from llmtap.lane.last_words import last_words
from llmtap.lane.limits import LaneLimits
from llmtap.lane.listener import Listener, bind, server_tls
from llmtap.lane.pool import Pool
from llmtap.lane.refusals import Crowded
from llmtap.lane.relay import Relay
from llmtap.lane.upload import Upload

log = logging.getLogger("llmtap.lane")
Answer = Callable[[http.HTTPFlow, ApiError], http.Response]
Failing = Callable[[http.HTTPFlow, ApiError], None]
LastWords = Callable[[http.HTTPFlow, ApiError, bytes], bytes]
Uploading = Callable[[http.HTTPFlow, Upload], Awaitable[None] | None]
Upstream = tuple[str, str, int]  # scheme, host, port
#: a time limit of so many ticks may be late by one (5 %), and needs no timer of its own
_TICKED = 20


class Plans(Protocol):
    """Flow → how it is to be carried out; None: where the request says."""

    def get(self, flow: http.HTTPFlow, /) -> Plan | None: ...


def plain_answer(flow: http.HTTPFlow, error: ApiError) -> http.Response:
    """The error in the dialect the path belongs to, and nothing else."""
    body = error_body(error, dialect_of(flow.request.path))
    response = http.Response.make(error.status, body, {"content-type": "application/json"})
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


class Lane:
    """One a mitmproxy process. Made by `install` or by the first `gateway` mode that starts."""

    def __init__(self, master: Master) -> None:
        self.loop = asyncio.get_running_loop()
        self.kinds = HeaderKinds()
        self.flow_id = mitm.FlowIds()
        self.plans: Plans = Attached[http.HTTPFlow, Plan]("plan")
        self.answer: Answer = plain_answer
        self.failing: Failing = lambda flow, error: None
        self.uploading: Uploading = lambda flow, upload: None
        self.before_replay: Callable[[], Awaitable[None]] | None = None
        self.cutting = False  # a drain has run out of time: clients go because we do
        self.last_words: LastWords = last_words
        self.reuse_port = False
        self.limits = LaneLimits()
        self.ticked_from_s = _TICKED * self.limits.tick_s
        self._master = master
        self._dispatcher = Dispatcher(master.addons)
        self.fire: Callable[[str, Any], Awaitable[None] | None] = self._dispatcher.fire
        self.fire_flow: Callable[[str, http.HTTPFlow], Awaitable[None] | None] = self._dispatcher.fire_flow
        self.pool = Pool(self.loop, self.limits, self.kinds, self.fire, self._upstream_tls)
        self._clients: set[ClientConnection] = set()
        self.running = 0  # exchanges, websockets too
        self._listeners: set[Listener] = set()
        self._server_tls: ssl.SSLContext | None = None
        self.draining = False  # no more listeners, no more connections
        self._tasks: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._alone: set[Relay] = set()  # exchanges without a client
        self._moved: asyncio.Future[None] | None = None

    # ---- settings

    def set_limits(self, limits: LaneLimits) -> None:
        """Other limits from now on; connections take them up with their next request."""
        self.limits = limits
        self.ticked_from_s = _TICKED * limits.tick_s
        self.pool.limit(limits)

    @property
    def keep_host(self) -> bool:
        """mitmproxy's option `keep_host_header`."""
        return bool(self._master.options.keep_host_header)

    @property
    def stores_bodies(self) -> bool:
        """mitmproxy's option `store_streamed_bodies`."""
        return bool(getattr(self._master.options, "store_streamed_bodies", False))

    @staticmethod
    def authority(upstream: Upstream) -> bytes:
        scheme, host, port = upstream
        shown = f"[{host}]" if ":" in host else host
        return (shown if port == (443 if scheme == "https" else 80) else f"{shown}:{port}").encode()

    def _upstream_tls(self) -> ssl.SSLContext:
        options = self._master.options
        context = ssl.create_default_context(cafile=options.ssl_verify_upstream_trusted_ca or None)
        if options.ssl_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context

    # ---- listeners

    def set_server_tls(self, tls: ssl.SSLContext | None) -> None:
        """What clients are met with from now on, on every listener without TLS of its own; None: plain HTTP."""
        self._server_tls = tls
        for listener in self._listeners:
            if listener.shared:
                listener.tls = tls

    def listen(
        self,
        host: str,
        port: int,
        *,
        cert: str | None = None,
        key: str | None = None,
        upstream: Upstream | None = None,
    ) -> Listener:
        """Open one more listener now; `close()` of what comes back closes it. `cert` and `key`: files, for TLS of its own
        (default: what `set_server_tls` said).

        Raises OSError when the address cannot be had or the files do not serve.
        """
        tls = server_tls(cert, key or cert) if cert is not None else self._server_tls
        sockets = bind(host, port, self.reuse_port)
        refusal = error_body(Crowded("too many connections"), "openai")
        head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
        # flows carry a mode every mitmproxy knows, so that files saved with -w open in any
        where = upstream or ("http", "127.0.0.1", sockets[0].getsockname()[1])
        mode = ProxyMode.parse(f"reverse:{where[0]}://{'[' + where[1] + ']' if ':' in where[1] else where[1]}:{where[2]}")
        listener = Listener(
            sockets,
            lambda: ClientConnection(self, mode, upstream),
            tls=tls,
            full=lambda: len(self._clients) >= self.limits.max_connections,
            refusal=head + b"content-length: %d\r\n\r\n" % len(refusal) + refusal,
        )
        listener.shared = cert is None
        self._listeners = {known for known in self._listeners if not known.closed} | {listener}
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.tick_s, self._tick)
        return listener

    # ---- connections

    def opened(self, client: ClientConnection) -> None:
        self._clients.add(client)
        proxyserver = self._master.addons.get("proxyserver")
        if proxyserver is not None:
            mitm.register_connection(proxyserver, client.conn.id, client)

    def closed(self, client: ClientConnection) -> None:
        self._clients.discard(client)
        proxyserver = self._master.addons.get("proxyserver")
        if proxyserver is not None:
            mitm.forget_connection(proxyserver, client.conn.id)
        self._tell()

    def goes_on(self, exchange: Relay, running: bool) -> None:
        """An exchange runs although its client has left, and may end; or it has ended."""
        if running:
            self._alone.add(exchange)
        else:
            self._alone.discard(exchange)
            self._tell()

    def _tell(self) -> None:
        """Tell whoever waits in `_until`."""
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)

    @property
    def connections(self) -> int:
        return len(self._clients)

    def background(self, waiting: Awaitable[None]) -> None:
        """Something nobody waits for: kept alive until it is done."""
        task = asyncio.ensure_future(waiting)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        now = self.loop.time()
        self.pool.sweep(now)
        for client in list(self._clients):
            client.tick(now)
        for exchange in list(self._alone):
            exchange.tick(now)
        busy = self._clients or self._alone or self.pool.idle_count or any(not known.closed for known in self._listeners)
        self._timer = self.loop.call_later(self.limits.tick_s, self._tick) if busy else None

    # ---- answers

    def answer_to(self, flow: http.HTTPFlow, error: ApiError) -> http.Response:
        """What the installed `answer` makes of an error; the plain one should it fail."""
        try:
            return self.answer(flow, error)
        except Exception as failure:
            log.error("answer failed", exc_info=(type(failure), failure, failure.__traceback__))
            return plain_answer(flow, error)

    @staticmethod
    def plain_answer(flow: http.HTTPFlow, error: ApiError) -> http.Response:
        """What is sent when the installed answer cannot be."""
        return plain_answer(flow, error)

    def last_words_of(self, flow: http.HTTPFlow, error: ApiError, tail: bytes) -> bytes:
        try:
            return self.last_words(flow, error, tail)
        except Exception as failure:
            log.error("last words failed", exc_info=(type(failure), failure, failure.__traceback__))
            return b""

    # ---- the end

    async def _until(self, done: Callable[[], bool], at: float) -> None:
        """Until `done`, looked at whenever a client or an exchange has gone, or the clock of the loop shows `at`."""
        while not done() and (left := at - self.loop.time()) > 0:
            self._moved = self.loop.create_future()
            await asyncio.wait([self._moved], timeout=left)
        self._moved = None

    async def drain(self, seconds: float | None = None) -> None:
        """Accept no more, close idle connections, let requests in flight finish for `seconds` (default: the limits'), then
        say goodbye to websockets (1001), and cut what is left."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for client in list(self._clients):
            client.close_when_idle()
        patience = self.limits.drain_s if seconds is None else seconds
        await self._until(lambda: not self._clients and not self._alone, self.loop.time() + patience)
        self.cutting = True
        sockets = [client for client in list(self._clients) if client.stop()]
        await self._until(lambda: self._clients.isdisjoint(sockets), self.loop.time() + self.limits.linger_s)
        for client in list(self._clients):
            client.transport.abort()
        self.pool.close()
        await asyncio.sleep(0)  # what was closed is noted in the next turn of the loop
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


#: weakly keyed, so that it ends with the mitmproxy it belongs to
_LANES: weakref.WeakKeyDictionary[Master, Lane] = weakref.WeakKeyDictionary()


def existing_lane(master: Master) -> Lane | None:
    return _LANES.get(master)


def lane_of(master: Master) -> Lane:
    """The lane of this mitmproxy; made at the first call, inside its event loop."""
    lane = _LANES.get(master)
    if lane is None:
        lane = _LANES[master] = Lane(master)
        mitm.drain_before_shutdown(master, lane.drain)
    return lane
