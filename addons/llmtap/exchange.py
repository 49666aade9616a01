"""One request and everything the addons learn of it: the place where they meet.

The chain creates an `Exchange` when a request's head arrives and finalises it exactly once, whatever ends the flow:
`response`, `error` or the gateway's own shutdown. It is keyed weakly by the flow, so it lives as long as mitmproxy
keeps the flow and no longer (`flow.metadata` is not the place: only plain data survives a flow file).

Times are seconds: `started` and the other marks on the monotonic clock, `started_us` microseconds since the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from mitmproxy import http

from llmtap.core.endpoints import Endpoint
from llmtap.core.errors import ApiError, ClientLeft, Dialect, NoHealthyBackend, UpstreamFailed, UpstreamTimeout
from llmtap.core.headers import Fields, by_name
from llmtap.core.ids import new_ulid
from llmtap.core.plan import Plan
from llmtap.core.record import Outcome, Summary
from llmtap.policy.backends import Backend
from llmtap.policy.capturing import Mode
from llmtap.policy.keys import Client
from llmtap.policy.route import Route
from llmtap.spool.long import Pending
from llmtap.wire.realtime import Realtime
from llmtap.wire.request import ParsedRequest

Clock = Callable[[], float]
CacheResult = Literal["hit", "miss", "shared", "bypass"]


class TeeLike(Protocol):
    """What the exchange needs of its tee: take a piece of the reply, give up what is held back, finish."""

    def __call__(self, data: bytes) -> bytes | list[bytes]: ...
    def held(self) -> bytes: ...
    def close(self) -> None: ...


class UploadLike(Protocol):
    """A request body that is sent as it comes and never here as a whole: how much of it has come."""

    @property
    def received(self) -> int: ...


class SocketLike(Protocol):
    """The messages of a websocket: those that are kept, how many were not, the bytes that came from the client."""

    messages: list[dict[str, Any]]
    dropped: int
    received: int
    realtime: Realtime | None

    def note(self, from_client: bool, is_text: bool, content: bytes, now: float) -> None: ...


class Exchange:
    """The state of one request. Fields are filled in the order of a request's life; None means "not known (yet)".

    What has its first value for most of its life is a class attribute: nothing is stored for it.
    """

    # the head
    request_id: str | None = None
    user_agent: str | None = None
    session_hint: str | None = None
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    capture_wish: Literal["full", "metadata", "off"] | None = None  # the client's own x-llmtap-capture
    direct: tuple[int, str] | None = None  # the port and path of /proxy/<port>/<path>
    client: Client | None = None  # whose key it bore; None: none was demanded
    counted = False  # among the requests in flight of its key
    cors_origin: str | None = None  # the web page that may read the answer
    priority = 0  # higher goes first where requests wait
    limit_headers: Sequence[tuple[bytes, bytes]] = ()  # what the client is told of its limits
    reserved: Any = ()  # tokens taken of its limits, to be settled at the end
    set_aside = 0  # of its key's budget while it runs, in billionths of a dollar
    cost_nano = 0  # what it has cost, in billionths of a dollar
    cache: CacheResult = "bypass"
    cache_wish = b""  # the client's own x-llmtap-cache
    cache_key: bytes | None = None  # what its reply will be known by
    kept: Any = None  # the reply's pieces, for the cache
    flight: Any = None  # led: others may follow
    flight_key = b""
    following: Any = None
    lane = False  # the gateway lane carries it: the plan is carried out, keys of backends are put on there
    # the body
    body: bytes | None = None  # as received
    socket: SocketLike | None = None  # once a message has passed
    upload: UploadLike | None = None  # ... or sent on as it comes
    received: float | None = None  # the whole request had arrived, or what of it is waited for
    parsed: ParsedRequest | None = None
    usage_injected = False
    filtered: bytes | None = None  # what filters have made of the body, where they have
    received_exact = False  # then: whether what was received is strict JSON
    # routing
    route: Route | None = None
    slot: Backend | None = None  # whose load counts this request
    plan: Plan | None = None
    backend: str | None = None
    forwarded: float | None = None
    queue_s = 0.0
    # the reply
    refusal: ApiError | None = None  # answered by us
    replied = False  # the reply's head has been through the addons
    status: int | None = None
    content_type = ""
    summary: Summary | None = None
    tee: TeeLike | None = None
    reply_body: bytes | None = None  # kept only where no decoder understands it
    first_content: float | None = None
    last_chunk: float | None = None
    chunks = 0
    reply_bytes = 0
    failure: ApiError | None = None  # why it could not be carried out (told by the lane)
    upstream_failure: str | None = None  # why the flow ended in `error`, in mitmproxy's words
    # the end
    outcome: Outcome = "open"
    finished: float | None = None
    #: the gateway's own share in seconds: from the whole request to its forwarding (waiting in a queue apart), and from the last
    #: byte of the reply to the end
    overhead_s: float | None = None
    capture: Mode | None = None  # how much of it is recorded, once that has begun
    capture_pending: Pending | None = None  # the record of a long request, until it is on the disk
    error_type: str | None = None
    error_message: str | None = None

    _fields: Fields | None = None
    _headers: dict[bytes, bytes]

    def __init__(self, method: str, path: str, endpoint: Endpoint, dialect: Dialect, client_ip: str) -> None:
        """`path`: the canonical path where there is one, else as sent; never the query."""
        self.method = method
        self.path = path
        self.endpoint = endpoint
        self.dialect: Dialect = dialect
        self.client_ip = client_ip
        self.uid = new_ulid()
        self.started = time.monotonic()
        self.started_us = time.time_ns() // 1000
        self.deltas: list[int] = []  # gaps between content events in 0.1 ms, the first from `started`

    def headers(self, request: http.Request) -> dict[bytes, bytes]:
        """The request's headers by lower-cased name; read anew only when somebody has changed them."""
        fields = request.data.headers.fields
        if fields is not self._fields:
            self._fields = fields
            self._headers = by_name(fields)
        return self._headers

    @property
    def key_name(self) -> str | None:
        """The name of the key, never the key."""
        return self.client.name if self.client is not None else None

    @property
    def client_request_id(self) -> str:
        """What the client sees as x-request-id: its own, or our uid."""
        return self.request_id or self.uid

    @property
    def model(self) -> str | None:
        return self.parsed.model if self.parsed else None

    @property
    def stream(self) -> bool:
        return bool(self.parsed and self.parsed.stream)

    @property
    def attempts(self) -> int:
        """How often a backend was asked."""
        if self.plan is not None and (self.lane or self.plan.attempts):
            return self.plan.attempts
        return 1 if self.forwarded is not None else 0

    def refuse(self, error: ApiError) -> None:
        """Note the answer we give instead of a backend."""
        self.refusal = error
        self.status = error.status
        self.error_type, self.error_message = error.code, error.message

    def finalise(self, outcome: Outcome, now: float) -> bool:
        """End the exchange. Only the first call counts; it returns True, every later one False."""
        if self.outcome != "open":
            return False
        self.outcome = outcome
        self.finished = now
        forwarded, received, last = self.forwarded, self.received, self.last_chunk
        if forwarded is not None and received is not None:
            before = forwarded - received - self.queue_s
            after = now - last if last is not None else 0.0
            self.overhead_s = (before if before > 0.0 else 0.0) + (after if after > 0.0 else 0.0)
        return True

    # durations in seconds, None while unknown

    @property
    def duration_s(self) -> float | None:
        return None if self.finished is None else self.finished - self.started

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: request head to the first chunk that bore generated content."""
        return None if self.first_content is None else self.first_content - self.started


def outcome_of_status(status: int) -> Outcome:
    """The outcome a complete answer stands for: 2xx/3xx ok, 504 timeout, other 5xx upstream_error, 4xx rejected."""
    if status < 400:
        return "ok"
    if status == 504:
        return "timeout"
    return "upstream_error" if status >= 500 else "rejected"


def outcome_of_refusal(error: ApiError) -> Outcome:
    """Ours to refuse is `rejected`, also when the reason is a bug of ours; backends that are away are an upstream error."""
    if isinstance(error, ClientLeft):
        return "client_abort"
    return (
        outcome_of_status(error.status) if isinstance(error, (NoHealthyBackend, UpstreamFailed, UpstreamTimeout)) else "rejected"
    )


def is_cut(ex: Exchange) -> bool:
    """A stream that ended cleanly on the wire without its protocol's end (and without a finish reason: not every server
    sends `[DONE]`)."""
    if not (ex.stream and ex.endpoint.generates and ex.status == 200 and ex.content_type.startswith("text/event-stream")):
        return False
    summary = ex.summary
    return summary is not None and not summary.complete and not any(choice.finish_reason for choice in summary.choices)
