"""Requests of our own to the backends: they wait in the queue, take a place, fail over and are held against a backend like
those of clients; but no client is behind them, nothing is captured, and mitmproxy's hooks know nothing of them."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable

from mitmproxy import http
from mitmproxy.connection import Client, Server

from llmtap.core.endpoints import endpoint_of
from llmtap.core.errors import InternalError
from llmtap.exchange import Exchange
from llmtap.lane import Lane, mitm
from llmtap.lane.errand import errand
from llmtap.policy.route import Route
from llmtap.queueing import Queueing
from llmtap.wire.request import parse


class Errands:
    """`lane` carries them out; without one (a stock mode) there are none. `dequeue`: told of what waits no more."""

    def __init__(self, queueing: Queueing, dequeue: Callable[[Exchange], None]) -> None:
        self._queueing = queueing
        self._dequeue = dequeue
        self.lane: Lane | None = None

    async def ask(self, like: http.HTTPFlow, path: str, body: bytes, priority: int) -> tuple[Exchange, int, http.Headers, bytes]:
        """The reply to a POST of `body` to `path`: what was seen of it, status, headers, content. `like`: a client's flow, whose
        headers it gets. Raises ApiError."""
        lane, endpoint = self.lane, endpoint_of(path)
        if lane is None or endpoint is None:
            raise InternalError("internal error; nobody carries this out")
        ex = Exchange("POST", path, endpoint, "openai", "")
        ex.lane, ex.priority, ex.body = True, priority, body
        ex.parsed = parse(endpoint.name, body)
        ex.route = Route(endpoint.kind, ex.model)
        flow = _flow(like, path, body)
        try:
            waiting = self._queueing.on_request(flow, ex)
            if waiting is not None and inspect.isawaitable(waiting):
                await waiting
            self._dequeue(ex)
            if ex.plan is None:
                raise InternalError("internal error; nobody carries this out")
            ex.forwarded = time.monotonic()
            status, headers, content = await errand(lane, flow, ex.plan)
            flow.response = http.Response(b"HTTP/1.1", status, b"", headers, content, None, time.time(), time.time())
            self._queueing.on_responseheaders(flow, ex)
            return ex, status, headers, content
        finally:
            ex.outcome = "ok"  # over, whatever came of it
            self._dequeue(ex)
            self._queueing.on_finish(flow, ex)


def _flow(like: http.HTTPFlow, path: str, body: bytes) -> http.HTTPFlow:
    """A flow over no connection. Its client is nobody's, so that nobody's leaving ends it."""
    now = time.time()
    fields = tuple(
        (name, b"%d" % len(body) if name.lower() == b"content-length" else value)
        for name, value in like.request.data.headers.fields
    )
    request = mitm.request("", 0, b"POST", path.encode(), b"HTTP/1.1", fields, now)
    request.data.content = body
    known = like.client_conn
    client = Client(peername=("", 0), sockname=known.sockname, timestamp_start=now, proxy_mode=known.proxy_mode)
    return mitm.flow(client, Server(address=None), request, now)
