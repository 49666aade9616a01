"""A backend for every request: now, or when one has room; another one when it fails. Afterwards there is room for the next.

A request takes a place at its backend (`max_concurrency` of the backend, `queue.max_concurrency` of all) and keeps it until its
end. Without a free place it waits, `queue.max_waiting` requests at most (429 `queue_full`), each for `queue.timeout_s` (503
`queue_timeout`) or until its client leaves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from functools import partial

from mitmproxy import http

from llmtap.core.config import Config
from llmtap.core.errors import ApiError, ClientLeft, QueueTimeout
from llmtap.core.headers import changed
from llmtap.core.plan import FailureReason, Plan, Target
from llmtap.exchange import Exchange
from llmtap.policy.backends import Backend, Backends, Way
from llmtap.policy.route import Route
from llmtap.policy.waiting import Waiter, Waiting
from llmtap.wire.form_rename import FormRename
from llmtap.wire.rename import with_model, with_query_model

#: request headers that are ours: obeyed or recorded, never forwarded
_OURS: dict[bytes, bytes | None] = dict.fromkeys(
    (b"x-llmtap-tags", b"x-llmtap-metadata", b"x-llmtap-cache", b"x-llmtap-capture", b"x-session-id")
)
_OURS[b"accept-encoding"] = b"identity"  # what comes back must be readable by the decoders
#: answers that the lane itself counts as failures
_COUNTED = (502, 503, 504)
_DOUBTFUL = ("failing", "trial")
Failed = Callable[[str, FailureReason], None]
Granted = tuple[Backend, Way]
Place = tuple[asyncio.Future[Granted], Waiter]


class Queueing:
    """Policy: a place at a backend, then `Exchange.plan`."""

    name = "queueing"

    def __init__(
        self,
        config: Config,
        backends: Backends,
        failed: Failed,
        worked: Callable[[Backend], None],
        waits: Callable[[Exchange], None],
    ) -> None:
        """`failed` and `worked` are told how requests fare on a backend, `waits` who has to wait."""
        self._backends = backends
        self._failed = failed
        self._worked = worked
        self._waits = waits
        self._timeouts = config.timeouts
        self._retries = config.routing.retries
        self._patience_s = config.queue.timeout_s
        self._waiting = Waiting(backends, config.queue.max_waiting)
        self._places: dict[str, dict[Exchange, Place]] = {}  # by client

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._waiting)

    # ---- a place

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> Awaitable[None] | None:
        route = ex.route
        if route is None:
            return None
        backends = self._backends
        if route.only is not None:
            self._go(flow, ex, route, Way(None, (route.only,)), route.only)
            return None
        way = backends.ways(route.scope, route.model)[0]
        backend = self._home(route, way) if route.home is not None else None
        if backend is None:
            backend = backends.pick(way, route.key, route.session)
            if backend is None:
                return self._wait(flow, ex, route, way)
        backends.take(backend)
        self._go(flow, ex, route, way, backend)
        return None

    @staticmethod
    def _home(route: Route, way: Way) -> Backend | None:
        return next((b for b in way.members if b.name == route.home and b.in_flight < b.max_concurrency), None)

    async def _wait(self, flow: http.HTTPFlow, ex: Exchange, route: Route, way: Way) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Granted] = loop.create_future()

        def granted(backend: Backend, way: Way) -> None:
            if future.done():  # the task has just been cancelled
                self._backends.release(backend)
            else:
                future.set_result((backend, way))

        waiter = Waiter(
            route.scope,
            route.model,
            granted=granted,
            refused=lambda error: None if future.done() else future.set_exception(error),
            key=route.key,
            session=route.session,
            priority=ex.priority,
        )
        self._waiting.join(waiter)
        client = flow.client_conn.id
        self._waits(ex)
        place = (future, waiter)
        self._places.setdefault(client, {})[ex] = place
        patience = max(self._patience_s, *(b.starts_within_s or 0.0 for b in way.startable), 0.0)
        late = QueueTimeout(f"no backend had room within {patience:g} s; try again later")
        timer = loop.call_later(patience, self._end, place, late)
        began = time.monotonic()
        try:
            if self._backends.wanted is not None and way.startable:
                self._backends.wanted(way.startable[0])
            backend, way = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._backends.release(future.result()[0])
            raise
        finally:
            timer.cancel()
            self._waiting.leave(waiter)
            ex.queue_s = time.monotonic() - began
            mine = self._places[client]
            del mine[ex]
            if not mine:
                del self._places[client]
        if ex.outcome != "open":
            self._backends.release(backend)
            raise ClientLeft("the request has ended")
        self._go(flow, ex, route, way, backend)

    def client_left(self, client: str) -> None:
        """The connection of this id is gone: nobody of it waits any longer."""
        if self._places:
            for place in list(self._places.get(client, {}).values()):
                self._end(place, ClientLeft("the client closed the connection"))

    def cancel(self, ex: Exchange, error: ApiError) -> bool:
        """End the waiting of a request with `error`. False when it does not wait."""
        return any(self._end(mine[ex], error) for mine in self._places.values() if ex in mine)

    def _end(self, place: Place, error: ApiError) -> bool:
        future, waiter = place
        if future.done():
            return False
        self._waiting.leave(waiter)  # at once: it must not be given a place any more
        future.set_exception(error)
        return True

    # ---- on its way

    def _go(self, flow: http.HTTPFlow, ex: Exchange, route: Route, way: Way, backend: Backend) -> None:
        """The place is taken: plan it."""
        if route.only is None:
            ex.slot = backend
        ex.backend = backend.name
        route.tried.append(backend)
        route.sent_as = route.model
        if way.model != route.model and way.model is not None:
            _rename(flow, ex, way.model)
            route.sent_as = way.model
        route.answered_as = route.sent_as
        route.body = flow.request.data.content or b""
        t = self._timeouts
        retries = self._retries if route.idempotent and route.only is None else 0
        ex.plan = Plan(
            candidates=[backend.target],
            retries=retries,
            more=partial(self._more, ex, route) if retries and len(self._backends) > 1 else None,
            idempotent=route.idempotent,
            connect_s=t.connect_s,
            first_byte_s=t.first_byte_s,
            idle_s=t.idle_s,
            total_s=t.total_s,
            on_failure=self._on_failure,
        )
        _prepare(flow, ex, backend.target)

    def _on_failure(self, target: Target, reason: FailureReason) -> None:
        self._failed(target.backend, reason)

    def _more(self, ex: Exchange, route: Route, reason: FailureReason) -> Target | None:
        """The next backend for a request that has failed, its place taken; None when nobody is left. The last attempt goes to a
        fallback model where there is one."""
        plan, slot = ex.plan, ex.slot
        if plan is None or slot is None or plan.attempts > plan.retries:
            return None
        try:
            ways = self._backends.ways(route.scope, route.model)
        except ApiError:
            return None
        last = plan.attempts == plan.retries
        for way in (*ways[1:], ways[0]) if last else ways:
            renamed = way.model is not None and way.model != route.sent_as
            if renamed and not route.body:
                continue  # the name is where it cannot be changed any more
            backend = self._backends.another(way, route.tried)
            if backend is not None:
                break
        else:
            return None
        self._backends.release(slot)
        self._backends.take(backend)
        route.tried.append(backend)
        ex.slot, ex.backend = backend, backend.name
        if not renamed or way.model is None:
            route.answered_as = route.sent_as
            return backend.target
        route.answered_as = way.model
        return dataclasses.replace(backend.target, body=with_model(route.body, way.model))

    # ---- how it went

    def on_responseheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        backend = ex.slot
        if backend is None or flow.response is None:
            return
        status = flow.response.status_code
        if status < 500:
            backend.last_ok = time.monotonic()
            if backend.failures or backend.state in _DOUBTFUL:
                self._worked(backend)
        elif not (ex.lane and status in _COUNTED):
            self._failed(backend.name, "status")

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        backend = ex.slot
        if backend is not None:
            ex.slot = None
            self._backends.release(backend)
        elif self._places:
            self.cancel(ex, ClientLeft("the request has ended"))
        if ex.plan is not None:
            ex.plan.more = None  # it knows the exchange: a cycle


def _rename(flow: http.HTTPFlow, ex: Exchange, model: str) -> None:
    """The request under the name its backend knows the model by."""
    request = flow.request
    if ex.endpoint.name == "realtime":
        request.path = with_query_model(request.path, model)
    elif isinstance(request.stream, FormRename):
        request.stream.model = model
    elif request.data.content:
        body = request.data.content = with_model(request.data.content, model)
        request.data.headers.fields = changed(request.data.headers.fields, {b"content-length": b"%d" % len(body)})


def _prepare(flow: http.HTTPFlow, ex: Exchange, target: Target) -> None:
    data = flow.request.data
    headers = ex.headers(flow.request)
    changes = _OURS.copy()
    changes[b"x-request-id"] = ex.client_request_id.encode("ascii")
    if target.headers:
        # the backend has a key of its own: the client's is none of its business
        changes[b"authorization"] = changes[b"x-api-key"] = None
    elif b"authorization" not in headers and (key := headers.get(b"x-api-key")):
        changes[b"authorization"] = b"Bearer " + key  # vLLM reads no other form
    if not ex.lane:
        # the lane puts address, Host and the backend's key on the wire, for whichever backend it tries
        changes |= target.headers
        changes[b"host"] = target.host_header
        data.host, data.port, data.scheme = target.host, target.port, b"https" if target.tls else b"http"
    data.headers.fields = changed(data.headers.fields, changes)
