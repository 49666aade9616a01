"""The one addon mitmproxy sees: it drives a request through its phases (the order of the steps: `assembly.py`).

    requestheaders   open the exchange → own endpoints → routing (path, method, size)
    request          transforms (parse, usage) → routing (who serves it) → queueing (backend, wait) → capture (begin) → metrics
    responseheaders  queueing → tee
    response|error   tee closes → outcome → finalise, once → queueing (place), capture (end), metrics, request log
                     (for a websocket: `websocket_end`)

mitmproxy logs an exception in a hook and lets the request pass: it fails OPEN. So every step is called from here and
everything it raises is caught: a *policy* step fails closed (its ApiError is the answer, any other exception a 500), an
*observer* fails open. Both are counted in `llmtap_hook_errors_total`. Every hook may be called twice for one event and acts once
(why: `backstop.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from mitmproxy import connection, ctx, http
from mitmproxy.proxy import server_hooks
from mitmproxy.websocket import WebSocketData

from llmtap.answers import client_left, error_response, own_headers, plain_failure, readable_by
from llmtap.assembly import Gateway
from llmtap.backstop import Backstop
from llmtap.core.attached import Attached
from llmtap.core.endpoints import canonical_path
from llmtap.core.errors import (
    ApiError,
    Cancelled,
    InternalError,
    NotFound,
    UpstreamFailed,
    UpstreamTimeout,
)
from llmtap.core.plan import FailureReason
from llmtap.exchange import Exchange, is_cut, outcome_of_refusal, outcome_of_status
from llmtap.lane import Upload
from llmtap.lifecycle import Lifecycle
from llmtap.opening import open_exchange, read_own_headers

log = logging.getLogger("llmtap")


class Chain(Lifecycle):
    """The addon: mitmproxy's hooks on flows."""

    name = "llmtap.chain"

    def __init__(self) -> None:
        super().__init__()
        self._own: Attached[http.HTTPFlow, bool] = Attached("own answer")  # by our own endpoints: no exchanges
        self._later: Attached[http.HTTPFlow, Callable[[], Awaitable[http.Response]]] = Attached("own answer to come")

    # ---- life of a flow

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if not flow.live:
            return None  # loaded from a file
        known = self._exchanges.get(flow)
        answered = flow.response is not None or self._later.get(flow) is not None
        if (known is not None and known.outcome == "open") or (answered and flow in self._own):
            return None
        if flow.is_replay:
            self._own.pop(flow)
        gateway = self._gateway
        if gateway is None or self._endpoints is None or self._unloaded:
            self._own[flow] = True
            flow.response = error_response(InternalError("the gateway is not ready"), None, flow.request)
            return None
        path = canonical_path(flow.request.path)
        client, origin = None, None
        try:
            if gateway.cors is not None:
                own = gateway.cors.preflight(flow.request)
                if own is not None:
                    self._answer_own(gateway, flow, own, None)
                    return None
                origin = gateway.cors.origin(flow.request)
            if gateway.auth is not None:
                client = gateway.auth.admit(flow, path)
        except Exception as error:
            self._shut_out(gateway, flow, path, error, origin)
            return None
        if path is not None:
            own = self._endpoints.answer(flow.request, path, client.models if client is not None else None)
            if own is not None:
                self._answer_own(gateway, flow, own, origin)
                return None
            later = self._endpoints.later(flow.request, path)
            if later is None and self._management is not None and path.startswith("/api/"):
                later = self._management.later(flow, path, client)
            if later is not None:
                self._own[flow] = True
                self._later[flow] = later if origin is None else _for_page(later, origin)
                return None
        ex = self._open(flow, path, origin)
        if client is not None:
            ex.client, ex.priority = client, client.priority
        try:
            if path is None:
                raise NotFound("the request target is not a plain path")
            read_own_headers(flow.request, ex)
        except ApiError as error:
            self._refuse(flow, ex, error)
            return None
        return self._run("on_requestheaders", flow, ex, then=_nothing)

    def _open(self, flow: http.HTTPFlow, path: str | None, origin: str | None) -> Exchange:
        ex = open_exchange(flow, path)
        ex.lane = self._lane is not None
        ex.cors_origin = origin
        self._exchanges[flow] = ex
        self._answers[flow.request] = ex
        self._live[ex] = flow
        return ex

    def _answer_own(self, gateway: Gateway, flow: http.HTTPFlow, response: http.Response, origin: str | None) -> None:
        self._own[flow] = True
        if gateway.inspect is not None:
            gateway.inspect.own_answer(flow)
        if origin is not None:
            readable_by(response.headers, origin)
        flow.response = response

    def _shut_out(self, gateway: Gateway, flow: http.HTTPFlow, path: str | None, error: Exception, origin: str | None) -> None:
        """No (valid) key, or the look at it failed: in both cases the request goes no further."""
        refusal = error if isinstance(error, ApiError) else InternalError("internal error; the request was not forwarded")
        if not isinstance(error, ApiError):
            gateway.metrics.hook_errors.labels("auth", "on_requestheaders").inc()
            log.error("llmtap: auth failed", exc_info=(type(error), error, error.__traceback__))
        if path is None or self._endpoints is None or not self._endpoints.knows(flow.request, path):
            self._refuse(flow, self._open(flow, path, origin), refusal)
            return
        gateway.metrics.refusals.labels(refusal.code).inc()
        self._answer_own(gateway, flow, error_response(refusal, None, flow.request), origin)

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if not flow.live:
            return None
        if flow in self._own:
            later = self._later.get(flow)
            return self._answer_later(flow, later) if later is not None else None
        ex = self._exchanges.get(flow)
        if ex is None or ex.outcome != "open":
            waiting = self.requestheaders(flow)  # another script kept that event from us (AddonHalt)
            if waiting is not None:
                return self._caught_up(waiting, flow)
            ex = self._exchanges.get(flow)
        if ex is None or ex.refusal is not None or ex.received is not None:
            return None
        ex.received = _now()
        ex.body = flow.request.raw_content
        if ex.body is None and flow.request.stream:
            ex.upload = _Unseen()  # a stock mode has sent it already, because another addon wanted that
        return self._run("on_request", flow, ex, then=self._forwarding)

    async def _caught_up(self, waiting: Awaitable[None], flow: http.HTTPFlow) -> None:
        await waiting
        more = self.request(flow)
        if more is not None:
            await more

    async def _uploading(self, flow: http.HTTPFlow, upload: Upload) -> None:
        """The lane sends this body as it comes: what is done at `request` has to be done now."""
        later = self._later.get(flow)
        if later is not None:
            await self._answer_later(flow, later)
            return
        ex = self._exchanges.get(flow)
        if ex is None:
            late = self.requestheaders(flow)  # another script kept that event from us (AddonHalt)
            if late is not None:
                await late
            ex = self._exchanges.get(flow)
        if ex is None or ex.refusal is not None or ex.received is not None:
            return
        gateway = self._gateway_of(ex)
        if gateway is None:
            return
        ex.upload = upload
        try:
            await gateway.uploads.read(flow, ex, upload)
        except ApiError as error:
            self._refuse(flow, ex, error)
            return
        ex.received = _now()
        waiting = self._run("on_request", flow, ex, then=self._forwarding)
        if waiting is not None:
            await waiting

    async def _answer_later(self, flow: http.HTTPFlow, later: Callable[[], Awaitable[http.Response]]) -> None:
        self._later.pop(flow)
        try:
            flow.response = await later()
        except Exception as error:
            log.error("llmtap: %s failed", flow.request.path, exc_info=(type(error), error, error.__traceback__))
            flow.response = error_response(InternalError("internal error"), None, flow.request)
        if self._gateway is not None and self._gateway.inspect is not None:
            self._gateway.inspect.own_answer(flow)

    def _forwarding(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.refusal is None:
            if ex.cache not in _ANSWERED and ex.forwarded is None:
                ex.forwarded = _now()
            if ex.plan is not None:
                self._plans[flow] = ex.plan

    def responseheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        ex = self._exchanges.get(flow)
        if ex is None or ex.refusal is not None or flow.response is None or ex.replied:
            return None
        ex.replied = True
        return self._run("on_responseheaders", flow, ex, then=self._stamp)

    def _stamp(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if flow.response is not None:
            own_headers(flow.response.headers, ex)

    def response(self, flow: http.HTTPFlow) -> None:
        ex = self._exchanges.get(flow)
        if ex is None or flow.response is None or ex.outcome != "open":
            return
        if flow.websocket is not None and flow.response.status_code == 101:
            return  # it has only begun: `websocket_end`
        self._run_sync("on_response", flow, ex)
        if ex.status is None:
            ex.status = flow.response.status_code
        if ex.refusal is not None:
            self._finish(flow, ex, outcome_of_refusal(ex.refusal))
            return
        if ex.cache == "hit":
            self._finish(flow, ex, "cached")
            return
        summary = ex.summary
        if summary is not None and summary.error_type is not None and ex.status < 400:
            self._finish(flow, ex, "upstream_error")  # an error inside a stream that had begun well
        elif is_cut(ex):
            self._close(flow, ex, "upstream_error", "the stream ended before it was complete")
        else:
            self._finish(flow, ex, outcome_of_status(ex.status))

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        ex = self._exchanges.get(flow)
        if ex is None or flow.websocket is None or ex.outcome != "open":
            return
        if not flow.websocket.messages[-1].from_client:
            ex.chunks += 1
            ex.reply_bytes += len(flow.websocket.messages[-1].content)
        self._run_sync("on_message", flow, ex)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        ex = self._exchanges.get(flow)
        socket = flow.websocket
        if ex is None or socket is None or ex.outcome != "open":
            return
        if ex.failure is not None:
            self._failed(flow, ex, ex.failure)
        elif flow.error is not None:
            self._close(flow, ex, "rejected", "killed in the interactive interface")
        elif flow.response is not None and flow.response.status_code != 101:
            ex.status = flow.response.status_code  # another addon has refused the switch
            self._finish(flow, ex, outcome_of_status(ex.status))
        elif self._stopped(socket):
            self._close(flow, ex, "lost", "the gateway stopped")
        elif socket.close_code in _CLEAN_CLOSE or (socket.closed_by_client and socket.close_code != _ABNORMAL_CLOSE):
            self._finish(flow, ex, "ok")
        elif not socket.closed_by_client:
            self._close(flow, ex, "upstream_error", f"the backend ended the websocket with {socket.close_code}")
        else:
            self._close(flow, ex, "client_abort", "the client closed the connection")

    def _stopped(self, socket: WebSocketData) -> bool:
        """Whether it was us who ended it: the gateway stops, and neither side has said goodbye of its own."""
        if self._lane is None or not self._lane.cutting:
            return False
        return socket.close_code == (_ABNORMAL_CLOSE if socket.closed_by_client else _GOING_AWAY)

    def error(self, flow: http.HTTPFlow) -> None:
        ex = self._exchanges.get(flow)
        if ex is None or ex.outcome != "open":
            return
        message = flow.error.msg if flow.error else "unknown"
        ex.upstream_failure = message
        gone = client_left(flow, message)
        if gone and self._lane is not None and self._lane.cutting:
            self._close(flow, ex, "lost", "the gateway stopped")
            return
        if gone:
            if ex.tee is not None and ex.replied:
                ex.tee.close()
                if ex.status == 200 and ex.summary is not None and ex.summary.complete and not _went_on(ex):
                    # it has all there is, and hung up between that and the end of the body, as SDKs do after [DONE]
                    self._finish(flow, ex, "ok")
                    return
            ex.status = 499
            self._close(flow, ex, "client_abort", "the client closed the connection")
            return
        if message == _KILLED:
            cancelled = isinstance(ex.failure, Cancelled)
            self._close(flow, ex, "rejected", str(ex.failure) if cancelled else "killed in the interactive interface")
            return
        if ex.failure is not None:
            if ex.forwarded is None:
                ex.refuse(ex.failure)  # it never got as far as a backend
            self._failed(flow, ex, ex.failure)
            return
        if ex.refusal is not None or ex.forwarded is None:
            # the request itself was unreadable, or too large for mitmproxy's own limit
            error = ex.refusal or self._request_error(message)
            ex.refuse(error)
            self._close(flow, ex, outcome_of_refusal(error), error.message)
            return
        silent = message == "timeout"
        failure = UpstreamTimeout("the backend was silent for too long") if silent else UpstreamFailed(plain_failure(message))
        if ex.backend is not None and (gateway := self._gateway_of(ex)) is not None:
            reason: FailureReason = "refused" if flow.server_conn.timestamp_tcp_setup is None else "closed"
            gateway.backend_failed(ex.backend, reason)
        self._failed(flow, ex, failure)

    def _failed(self, flow: http.HTTPFlow, ex: Exchange, failure: ApiError) -> None:
        """No (complete) reply, and this is why. Its status counts where no other has been sent."""
        if ex.status is None:
            ex.status = failure.status
        ex.error_type, ex.error_message = failure.code, failure.message
        self._close(flow, ex, outcome_of_refusal(failure), failure.message)

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        # mitmproxy would fail every later request of this client to that address without trying again
        data.server.error = None

    def client_disconnected(self, client: connection.Client) -> None:
        for gateway in self._gateways():
            gateway.queueing.client_left(client.id)
            gateway.policies.client_left(client.id)


#: how a backend may end a websocket without anything being wrong: done, going away, no code given
_CLEAN_CLOSE = (1000, 1001, 1005)
_ABNORMAL_CLOSE = 1006  # without a close frame
_GOING_AWAY = 1001  # what both sides are told when the gateway stops
_KILLED = "Connection killed."  # mitmproxy.flow.Error.KILLED_MESSAGE


_now = time.monotonic
#: without a backend's doing
_ANSWERED = ("hit", "shared")


def _for_page(later: Callable[[], Awaitable[http.Response]], origin: str) -> Callable[[], Awaitable[http.Response]]:
    """The same answer, for the web page at `origin`."""

    async def respond() -> http.Response:
        response = await later()
        readable_by(response.headers, origin)
        return response

    return respond


def _nothing(flow: http.HTTPFlow, ex: Exchange) -> None:
    """What follows the head: nothing."""


def _went_on(ex: Exchange) -> bool:
    """Whether the backend went on after the client had left (`on_client_disconnect: drain`)."""
    left = ex.plan.left_at if ex.plan is not None else None
    return left is not None and ex.last_chunk is not None and ex.last_chunk > left


class _Unseen:
    """A body that was sent without coming by here."""

    received = 0


def gateway() -> Chain:
    """What `addons/gateway.py` gives to mitmproxy: the same chain again when the script is loaded again."""
    known = ctx.master.addons.get(Backstop.name)
    if known is not None:
        chain: Chain = known.chain
        return chain
    chain = Chain()
    ctx.master.addons.add(Backstop(chain))
    return chain
