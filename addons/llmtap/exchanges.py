"""The exchanges of live flows: the steps they pass, how they are refused, how they end, and who may look at them.

A *policy* step fails closed: its ApiError is the answer, any other exception a 500. An *observer* fails open. Both are counted
in `llmtap_hook_errors_total`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from mitmproxy import http

from llmtap.answers import error_response, last_words, plain_failure
from llmtap.assembly import Gateway, Step
from llmtap.core.attached import Attached
from llmtap.core.errors import (
    ApiError,
    BadRequest,
    Cancelled,
    InternalError,
    UpstreamFailed,
    UpstreamTimeout,
)
from llmtap.core.plan import Plan
from llmtap.core.record import Outcome
from llmtap.exchange import Exchange
from llmtap.lane.last_words import last_words as words_after

log = logging.getLogger("llmtap")


class Exchanges:
    """What the chain knows of the requests it carries. `_gateway`: everything built from the configuration now in force."""

    def __init__(self) -> None:
        self._gateway: Gateway | None = None
        self._exchanges: Attached[http.HTTPFlow, Exchange] = Attached("exchange")
        self._live: dict[Exchange, http.HTTPFlow] = {}
        self._answers: Attached[http.Request, Exchange] = Attached("exchange")
        self._plans: Attached[http.HTTPFlow, Plan] = Attached("plan")
        self._under: dict[Exchange, Gateway] = {}  # what began before the configuration was loaded again
        self._idle: asyncio.Event | None = None

    @property
    def in_flight(self) -> int:
        """Exchanges that have begun and not ended."""
        return len(self._live)

    # ---- under which configuration

    def _gateway_of(self, ex: Exchange) -> Gateway | None:
        """That under which the exchange began."""
        return self._under.get(ex, self._gateway) if self._under else self._gateway

    def _ended(self, ex: Exchange) -> None:
        """An exchange that began under another configuration is over."""
        gateway = self._under.pop(ex, None)
        if gateway is not None:
            self._leave(gateway)

    def _leave(self, gateway: Gateway) -> None:
        """Stop it, unless something still runs under it."""
        running = set(self._under.values())
        if gateway not in running:
            gateway.stop(running if self._gateway is None else {self._gateway, *running})

    def _gateways(self) -> Iterable[Gateway]:
        """That of the configuration in force, and those under which requests of earlier ones run."""
        if self._under:
            return {*self._under.values(), *([self._gateway] if self._gateway is not None else [])}
        return () if self._gateway is None else (self._gateway,)

    # ---- for those who look after it

    def in_flight_list(self) -> list[dict[str, Any]]:
        """Every request that has not ended, oldest first, as plain data; never its text."""
        now = _now()
        return [
            {
                "id": ex.uid,
                "request_id": ex.request_id,
                "endpoint": ex.endpoint.name,
                "path": ex.path,
                "model": ex.model,
                "backend": ex.backend,
                "key": ex.key_name,
                "client": ex.client_ip,
                "stream": ex.stream,
                "state": _state_of(ex),
                "age_s": round(now - ex.started, 3),
                "queue_s": round(ex.queue_s, 3),
                "attempts": ex.attempts,
                "reply_bytes": ex.reply_bytes,
            }
            for ex in list(self._live)
        ]

    def cancel(self, uid: str) -> bool:
        """End one request: its client gets an error, or the last words of its stream. False when there is none of that id."""
        found = next((pair for pair in self._live.items() if pair[0].uid == uid), None)
        if found is None:
            return False
        ex, flow = found
        error = Cancelled("the request was cancelled by an operator")
        if any(gateway.queueing.cancel(ex, error) for gateway in self._gateways()):
            return True
        if ex.plan is not None and ex.plan.cancel is not None:
            ex.plan.cancel(error)
        elif flow.killable:
            ex.failure = error
            flow.kill()
        return True

    def busy(self) -> dict[str, int]:
        """How many requests each backend has, also one that the configuration no longer names."""
        return Counter(ex.backend for ex in self._live if ex.backend is not None and ex.forwarded is not None)

    # ---- ends

    def _close(self, flow: http.HTTPFlow, ex: Exchange, outcome: Outcome, message: str) -> None:
        """End an exchange that has no complete reply; what arrived of it is kept."""
        if ex.tee is not None and ex.outcome == "open":
            ex.tee.close()
        if ex.error_message is None:
            ex.error_message = message
        if ex.error_type is None:
            ex.error_type = outcome
        self._finish(flow, ex, outcome)

    def _finish(self, flow: http.HTTPFlow, ex: Exchange, outcome: Outcome) -> None:
        if ex.finalise(outcome, _now()):
            self._live.pop(ex, None)
            self._run_sync("on_finish", flow, ex)
            if self._under:
                self._ended(ex)
            if self._idle is not None and not self._live:
                # one more turn of the loop: the last bytes are still to be sent
                asyncio.get_running_loop().call_later(0.05, self._idle.set)

    # ---- running steps

    def _run_sync(self, phase: str, flow: http.HTTPFlow, ex: Exchange) -> None:
        """Run a phase whose steps never wait."""
        gateway = self._gateway
        for step in gateway.steps[phase] if gateway is not None and not self._under else self._steps(phase, ex):
            try:
                step.call(flow, ex)
            except Exception as error:
                if self._caught(step, phase, flow, ex, error):
                    return

    def _run(
        self, phase: str, flow: http.HTTPFlow, ex: Exchange, then: Callable[[http.HTTPFlow, Exchange], None]
    ) -> Awaitable[None] | None:
        """Run a phase; an awaitable comes back only when a step has to wait."""
        gateway = self._gateway
        steps = gateway.steps[phase] if gateway is not None and not self._under else self._steps(phase, ex)
        for step in steps:
            try:
                waiting = step.call(flow, ex)
            except Exception as error:
                if self._caught(step, phase, flow, ex, error):
                    return None
                continue
            if waiting is not None and inspect.isawaitable(waiting):
                return self._rest(waiting, step, steps[steps.index(step) + 1 :], phase, flow, ex, then)
        then(flow, ex)
        return None

    async def _rest(
        self,
        waiting: Awaitable[None],
        step: Step,
        rest: list[Step],
        phase: str,
        flow: http.HTTPFlow,
        ex: Exchange,
        then: Callable[[http.HTTPFlow, Exchange], None],
    ) -> None:
        try:
            await waiting
        except Exception as error:
            if self._caught(step, phase, flow, ex, error):
                return
        for step in rest:
            try:
                more = step.call(flow, ex)
                if more is not None and inspect.isawaitable(more):
                    await more
            except Exception as error:
                if self._caught(step, phase, flow, ex, error):
                    return
        then(flow, ex)

    def _steps(self, phase: str, ex: Exchange) -> list[Step]:
        gateway = self._gateway if not self._under else self._gateway_of(ex)
        return gateway.steps[phase] if gateway is not None else []

    def _caught(self, step: Step, phase: str, flow: http.HTTPFlow, ex: Exchange, error: Exception) -> bool:
        """Deal with what a step raised. True when the request is refused and the phase ends."""
        if isinstance(error, ApiError) and step.kind == "policy" and phase != "on_finish":
            self._refuse(flow, ex, error)
            return True
        if self._gateway is not None:
            self._gateway.metrics.hook_errors.labels(step.name, phase).inc()
        log.error("llmtap: %s failed in %s", step.name, phase, exc_info=(type(error), error, error.__traceback__))
        if step.kind == "policy" and phase in ("on_requestheaders", "on_request"):
            self._refuse(flow, ex, InternalError("internal error; the request was not forwarded"))
            return True
        return False

    # ---- answers of our own

    def _request_error(self, message: str) -> ApiError:
        if "body_size_limit" in message and self._gateway is not None:
            return self._gateway.routing.too_large()
        return BadRequest("the request is not valid HTTP")

    def _refuse(self, flow: http.HTTPFlow, ex: Exchange, error: ApiError) -> None:
        ex.refuse(error)
        flow.response = error_response(error, ex, flow.request)

    # what the lane asks of us

    def _failing(self, flow: http.HTTPFlow, error: ApiError) -> None:
        ex = self._exchanges.get(flow)
        if ex is not None:
            ex.failure = error

    def _lane_answer(self, flow: http.HTTPFlow, error: ApiError) -> http.Response:
        return error_response(error, self._exchanges.get(flow), flow.request)

    def _lane_last_words(self, flow: http.HTTPFlow, error: ApiError, tail: bytes) -> bytes:
        ex = self._exchanges.get(flow)
        held = ex.tee.held() if ex is not None and ex.tee is not None else b""
        return held + words_after(flow, error, tail + held)

    # what stock modes ask of us

    def _stock_answer(self, request: http.Request | None, status: int, message: str) -> http.Response:
        """What a stock mode answers when it has no response: the exchange's own failure, or its status in words."""
        ex = self._answers.get(request) if request is not None else None
        error: ApiError
        if ex is not None and ex.refusal is not None:
            error = ex.refusal
        elif ex is not None and ex.outcome == "timeout":
            error = UpstreamTimeout(ex.error_message or "the backend was silent for too long")
        elif status == 413:
            error = self._request_error("body_size_limit")
        elif status >= 500:
            error = UpstreamFailed(plain_failure(message))
        else:
            error = BadRequest("the request is not valid HTTP")
        response = error_response(error, ex, request)
        response.headers["connection"] = "close"
        return response

    def _last_words(self, request: http.Request, message: str) -> bytes:
        ex = self._answers.get(request)
        return last_words(ex) if ex is not None else b""

    def _stats(self) -> dict[str, Any]:
        gateway = self._gateway
        return {
            "in_flight": len(self._live),
            "waiting": sum(gateway.queueing.waiting for gateway in self._gateways()),
            "spool_bytes": gateway.capture.sink.spool_bytes if gateway and gateway.capture else 0,
            "capture_healthy": gateway.capture.sink.healthy if gateway and gateway.capture else None,
        }


_now = time.monotonic


def _state_of(ex: Exchange) -> str:
    """receiving → waiting → forwarded → replying"""
    if ex.replied:
        return "replying"
    if ex.forwarded is not None:
        return "forwarded"
    return "receiving" if ex.received is None else "waiting"
