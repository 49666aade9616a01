"""A request of our own to a backend, carried out like a client's: plan, retries, times, the shared pool. Nobody's hooks fire."""

from __future__ import annotations

from mitmproxy import http

from llmtap.core.plan import Plan
from llmtap.lane.attempts import Attempts
from llmtap.lane.inbound import Inbound
from llmtap.lane.lane import Lane
from llmtap.lane.pieces import Collected
from llmtap.lane.replay import NoClient
from llmtap.lane.upstream import Failure

Reply = tuple[int, http.Headers, bytes]


async def errand(lane: Lane, flow: http.HTTPFlow, plan: Plan) -> Reply:
    """Status, headers and whole body of the reply to `flow`'s request. Raises ApiError; a cancellation ends it at the
    backend, too."""
    inbound = Inbound()
    inbound.method = flow.request.data.method
    inbound.complete = True
    attempts = Attempts(NoClient(lane, flow), inbound, plan)
    try:
        upstream = await attempts.obtain(flow)
        reply = upstream.reply
        collected = Collected(flow, attempts.watch, lane.loop.time, attempts.fail, lane.limits.max_reply_bytes)
        content = reply.take()
        if content:
            collected(content)
        if not reply.complete:
            attempts.watch.phase("idle", plan.idle_s)
            upstream.sink = collected
            try:
                await upstream.end()
            except Failure as failure:
                raise attempts.failed(failure) from None
        return reply.status, http.Headers(tuple(reply.fields)), collected.content()
    finally:
        attempts.close()
