"""The answers only the lane gives: to a client whose HTTP is wrong, too slow, too large or not supported.

Same tree as `llmtap.core.errors.ApiError`; here because nothing above HTTP ever raises them.
"""

from __future__ import annotations

from llmtap.core.errors import ApiError, BadRequest


class HeadTooLarge(BadRequest):
    status, default_code = 431, "head_too_large"


class TooSlow(BadRequest):
    status, default_code = 408, "request_timeout"


class NotSupported(BadRequest):
    status, default_code = 501, "not_supported"


class Crowded(ApiError):
    """More connections than `LaneLimits.max_connections`."""

    status, type, default_code = 503, "service_unavailable_error", "too_many_connections"
    retry_after_s = 1


class ClientGone(Exception):
    """The client closed its connection: nobody is left to answer. `str()` is the flow's error, as mitmproxy words it."""

    def __init__(self) -> None:
        super().__init__("Client disconnected.")


class Stopping(Exception):
    """The gateway stops, and its patience is over. `str()` is what a websocket's peers are told."""

    def __init__(self) -> None:
        super().__init__("the gateway is shutting down")


class Killed(Exception):
    """The flow was killed in an interface or by an addon: no answer, the connection is cut."""


def forget(error: BaseException) -> None:
    """Done with this error: what its traceback and those of its causes hold (whole exchanges) need not wait for the collector."""
    found: BaseException | None = error
    while found is not None:
        cause = found.__context__
        found.__traceback__ = found.__context__ = None
        found = cause
