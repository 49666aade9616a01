"""The hand-over from policy (which backend, how long, how often) to whoever does the I/O (the gateway lane).

The routing addon leaves a `Plan` for a flow; the lane carries it out and notes in it what happened. In mitmproxy's
stock modes only the first candidate can be used (no retry there), which the routing addon sets on the flow itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

from llmtap.core.errors import ApiError

FailureReason = Literal["refused", "reset", "closed", "connect_timeout", "first_byte_timeout", "status", "protocol"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request may go: one backend. `headers` replace same-named request headers on the wire only (the backend's
    own key: it never becomes part of the flow). `host_header` is what the backend sees as Host. `body` replaces the request's
    body, where this backend knows the model under another name."""

    backend: str
    host: str
    port: int
    tls: bool = False
    uds: str | None = None
    host_header: bytes = b""
    drain: bool = False  # as `Plan.on_client_disconnect`, for this backend
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(slots=True)
class Plan:
    """How one request is to be carried out. Times are seconds; 0 means no limit."""

    candidates: list[Target]  # in the order to try
    retries: int = 2  # further attempts after the first, before the first body byte only
    more: Callable[[FailureReason], Target | None] | None = field(default=None, repr=False)  # asked when all candidates failed
    idempotent: bool = True  # False: not even over a connection that might be stale
    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 600.0
    total_s: float = 3600.0
    on_client_disconnect: Literal["abort", "drain"] = "abort"
    shared: bool = False  # others wait for the reply: neither a slow client nor one that leaves holds it up
    body: AsyncIterator[bytes] | None = None  # a generated answer: the flow's response head plus these chunks
    # noted by the lane
    attempts: int = 0
    served_by: Target | None = None
    failures: tuple[FailureReason, ...] = ()  # of each attempt that failed, in order
    error: ApiError | None = None  # what the lane answers, or would have answered had the head not been sent
    left_at: float | None = None  # monotonic clock when the client had gone
    sent_at: float | None = None  # clock of the event loop when the request had been handed to the backend
    on_failure: Callable[[Target, FailureReason], None] | None = field(default=None, repr=False)
    resume: Callable[[], None] | None = field(default=None, repr=False)  # while a backend works: read on, if it was held up
    cancel: Callable[[Exception], None] | None = field(default=None, repr=False)  # while a backend works: end it with this
