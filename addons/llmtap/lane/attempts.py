"""A request on its way to a backend: its plan's candidates one after the other, until one answers.

A connection from the pool may have gone stale unnoticed; that is not held against the backend, and a new one is opened. Once
the head of a response has come it is the one that counts, but for 502, 503 and 504 while there is somebody else to ask.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import http

from llmtap.core.errors import ApiError, InternalError, NoHealthyBackend, UpstreamFailed, UpstreamTimeout
from llmtap.core.plan import FailureReason, Plan, Target
from llmtap.lane.head import BadHead, build, is_target, trailer_lines
from llmtap.lane.inbound import Inbound
from llmtap.lane.refusals import ClientGone
from llmtap.lane.timing import Limit, Watch
from llmtap.lane.upstream import Failure, Upstream
from llmtap.lane.websocket import HANDSHAKE, understood

if TYPE_CHECKING:
    from llmtap.lane.client import ClientConnection

log = logging.getLogger("llmtap.lane")
_RETRIED = frozenset((502, 503, 504))
_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))


def default_plan(flow: http.HTTPFlow, client: ClientConnection) -> Plan:
    """Without a plan: where the request says, as mitmproxy's reverse mode does."""
    data = flow.request.data
    if client.upstream is None and (data.host, data.port) == client.placeholder.address:
        return Plan([])  # nobody sent it anywhere, and it must not come back here
    return Plan([Target(data.host, data.host, data.port, data.scheme == b"https")], retries=0)


class Attempts:
    """Of one exchange, which calls `close` at its end. `watch` keeps the plan's times from here on."""

    __slots__ = ("_abandoned", "_client", "_connecting", "_inbound", "_lane", "_overdue", "_taken", "_upstream", "plan", "watch")

    def __init__(self, client: ClientConnection, inbound: Inbound, plan: Plan) -> None:
        self.plan = plan
        self._client = client
        self._lane = client.lane
        self._inbound = inbound
        self._upstream: Upstream | None = None  # the connection in use
        self._connecting: asyncio.Task[None] | None = None
        self._taken: Callable[[Exception], None] | None = None
        self._abandoned = False
        self._overdue = False
        self.watch = Watch(self._lane.loop, plan.total_s, self._expired, self._lane.ticked_from_s)

    @property
    def drains(self) -> bool:
        """The backend may finish although the client is gone."""
        plan = self.plan
        return plan.shared or plan.on_client_disconnect == "drain" or (plan.served_by is not None and plan.served_by.drain)

    @property
    def may_retry(self) -> bool:
        return not self._overdue

    # ---- the candidates

    async def obtain(self, flow: http.HTTPFlow) -> Upstream:
        """The connection whose response's head has come and will be used. Raises ApiError when all candidates failed."""
        plan = self.plan
        plan.cancel = self.fail
        plan.resume = self.resume
        failed: Failure | None = None
        at = 0
        target = self._candidate(at, "refused")
        while target is not None:
            at += 1
            plan.attempts += 1
            plan.served_by = target
            try:
                upstream = await self._attempt(flow, target)
            except Failure as failure:
                self._note(failure.reason)
                failed = failure.with_traceback(None)  # which knows this very frame
                if self._abandoned:
                    raise ClientGone from None
                if not self.may_retry:
                    break
                target = self._candidate(at, failure.reason)
                continue
            if upstream.reply.status in _RETRIED:
                self._note("status")
                target = None if self._abandoned or not self.may_retry else self._candidate(at, "status")
                if target is not None:
                    self.release()
                    continue
            return upstream
        plan.served_by = None
        if failed is None:
            raise NoHealthyBackend("no healthy backend for this request")
        raise _api_error(failed)

    def _candidate(self, at: int, reason: FailureReason) -> Target | None:
        """The target of the attempt number `at` (from 0), None when that many are not allowed or nobody is left."""
        plan = self.plan
        if at > plan.retries:
            return None
        if at < len(plan.candidates):
            return plan.candidates[at]
        if not at or plan.more is None:
            return None
        try:
            return plan.more(reason)
        except Exception as error:
            log.error("more failed", exc_info=(type(error), error, error.__traceback__))
            return None

    async def _attempt(self, flow: http.HTTPFlow, target: Target) -> Upstream:
        """One candidate: over a pooled connection, and if that turns out to be stale over a new one. Raises Failure."""
        data = flow.request.data
        data.host, data.port, data.scheme = target.host, target.port, b"https" if target.tls else b"http"
        head, body = self._request_bytes(data, target)
        upstream = self._lane.pool.take(target) if self.plan.idempotent else None
        stale_possible = upstream is not None
        while True:
            if upstream is None:
                upstream = await self._connect(target)
            self._upstream = upstream
            flow.server_conn = upstream.server
            upstream.send(head, body, data.method == b"HEAD", self._inbound.upgrade)
            self.watch.phase("first_byte", self.plan.first_byte_s)
            self.plan.sent_at = self.watch.touched
            try:
                await upstream.head(first=self.plan.more is not None)
            except Failure as failure:
                self._upstream = None
                if not stale_possible or upstream.answered or failure.reason not in ("reset", "closed"):
                    raise
                upstream = None
                stale_possible = False
                continue
            return upstream

    async def _connect(self, target: Target) -> Upstream:
        if self.plan.attempts > 1:
            self.watch.phase("connect", 0.0)  # the pool keeps this time
        self._connecting = task = asyncio.current_task()
        try:
            return await self._lane.pool.connect(target, self._client.conn, self.plan.connect_s)
        except asyncio.CancelledError:
            if not self._abandoned or task is None:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            self._connecting = None

    def _request_bytes(self, data: http.RequestData, target: Target) -> tuple[bytes, bytes]:
        if data.path is not self._inbound.target and not is_target(data.path):
            raise InternalError("internal error; the request's path was made unusable")
        body = (data.content if target.body is None else target.body) or b""
        chunked = data.trailers is not None
        upgrade = self._inbound.upgrade
        try:
            head = build(
                b"%b %b HTTP/1.1" % (data.method, data.path),
                understood(data.headers.fields) if upgrade else data.headers.fields,
                self._lane.kinds,
                length=len(body) if body or data.method in _WITH_BODY else None,
                chunked=chunked,
                host=target.host_header,
                replace=target.headers,
                extra=HANDSHAKE if upgrade else (),
            )
            if data.trailers is not None:
                body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n"
                body += trailer_lines(data.trailers.fields, self._lane.kinds)
        except BadHead as error:
            log.error("request not sent: %s", error)
            raise InternalError("internal error; the request's headers were made unusable") from None
        return head, body

    # ---- failures

    def failed(self, failure: Failure) -> ApiError:
        """The backend's response broke off: note it, and what to tell the client."""
        self._note(failure.reason)
        return _api_error(failure)

    def _note(self, reason: FailureReason) -> None:
        plan = self.plan
        plan.failures += (reason,)
        if plan.on_failure is None or plan.served_by is None:
            return
        try:
            plan.on_failure(plan.served_by, reason)
        except Exception as error:
            log.error("on_failure failed", exc_info=(type(error), error, error.__traceback__))

    def fail(self, error: Exception) -> None:
        """The response in progress is not wanted any more: whoever waits for it gets `error`."""
        upstream = self._upstream
        if upstream is not None:
            self._upstream = None
            upstream.fail(error)
        elif self._taken is not None:
            self._taken(error)

    def _expired(self, limit: Limit) -> None:
        if limit == "total":
            self._overdue = True
        if limit == "idle" and self._upstream is not None and self._upstream.paused:
            self._client.transport.abort()  # it is the client who does not move
        elif limit == "first_byte":
            self.fail(Failure("first_byte_timeout", "the backend did not answer in time"))
        else:
            self.fail(UpstreamTimeout("the backend was silent for too long" if limit == "idle" else "the request took too long"))

    # ---- what happens to the client

    def abandon(self) -> None:
        """The client is gone: stop at once; or, if the plan says so, let the backend finish."""
        self._abandoned = True
        self.plan.left_at = time.monotonic()
        if self._upstream is not None and self.drains:
            self._upstream.resume()
        elif self._upstream is not None:
            self.fail(ClientGone())
        elif self._connecting is not None:
            self._connecting.cancel()

    def pause(self) -> None:
        """The client takes no more for now."""
        if self._upstream is not None and not self.plan.shared:
            self._upstream.pause()

    def resume(self) -> None:
        if self._upstream is not None:
            self.watch.touched = self._lane.loop.time()
            self._upstream.resume()

    # ---- the end

    def release(self) -> None:
        """Done with the connection."""
        upstream = self._upstream
        if upstream is not None:
            self._upstream = None
            upstream.release()

    def hand_over(self, taken: Callable[[Exception], None]) -> None:
        """The connection is somebody else's from now on, who is told through `taken` when a time is up."""
        self._upstream = None
        self._taken = taken

    def close(self) -> None:
        """The exchange is over."""
        self.release()
        self._taken = None
        self.plan.cancel = self.plan.resume = None
        self.watch.stop()
        del self.watch  # it knows this object: a cycle would leave every flow to the garbage collector


def _api_error(failure: Failure) -> ApiError:
    if failure.reason in ("connect_timeout", "first_byte_timeout"):
        return UpstreamTimeout(str(failure))
    return UpstreamFailed(str(failure))
