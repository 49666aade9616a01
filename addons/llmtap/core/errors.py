"""Every error llmtap raises on purpose, and the bodies it answers with.

    LlmtapError                     anything of ours
    ├── ConfigError                 the user's configuration is wrong (file, line, key, mend)
    ├── WireError                   bytes that are not what their format says
    ├── SpoolError                  the capture log cannot be written
    └── ApiError                    becomes an HTTP answer: status, code, type
        ├── BadRequest              400 bad_request
        ├── Unauthorized            401 invalid_api_key
        ├── Forbidden               403 model_not_allowed
        ├── NotFound                404 model_not_found | path_not_allowed
        ├── TooLarge                413 request_too_large
        ├── TooMany                 429 rate_limit_exceeded | queue_full | budget_exceeded
        ├── UpstreamFailed          502 upstream_error
        ├── NoHealthyBackend        503 no_healthy_backend
        ├── QueueTimeout            503 queue_timeout
        ├── Cancelled               503 cancelled (by an operator)
        ├── ClientLeft              499 client_left (nobody is answered; logs and metrics)
        ├── UpstreamTimeout         504 upstream_timeout
        └── InternalError           500 internal_error (an exception of ours: fail closed)

Messages are shown to clients: they never contain a key or a prompt.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import orjson

Dialect = Literal["openai", "anthropic", "ollama"]


class LlmtapError(Exception):
    """Base of every error llmtap raises on purpose."""


class ConfigError(LlmtapError):
    """The configuration is wrong. `str()` has one line a problem: file, line, key, what is wrong, how to mend it.

    `problems` holds the same as `llmtap.core.config_problems.Problem` objects, where the loader raised it.
    """

    problems: tuple[Any, ...] = ()


class WireError(LlmtapError):
    """Bytes that are not what their format says (the one error decoders raise)."""


class SpoolError(LlmtapError):
    """The capture log cannot be written or read."""


class ApiError(LlmtapError):
    """An error with an HTTP answer. `code` is the machine-readable name, `type` OpenAI's error class."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    default_code: ClassVar[str] = "internal_error"
    retry_after_s: int | None = None

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class InternalError(ApiError):
    """An exception inside llmtap itself; the request did not reach a backend."""


class BadRequest(ApiError):
    status, type, default_code = 400, "invalid_request_error", "bad_request"


class Unauthorized(ApiError):
    status, type, default_code = 401, "authentication_error", "invalid_api_key"


class Forbidden(ApiError):
    status, type, default_code = 403, "permission_error", "model_not_allowed"


class NotFound(ApiError):
    status, type, default_code = 404, "not_found_error", "path_not_allowed"


class TooLarge(ApiError):
    status, type, default_code = 413, "invalid_request_error", "request_too_large"


class TooMany(ApiError):
    status, type, default_code = 429, "rate_limit_error", "rate_limit_exceeded"
    retry_after_s = 1


class UpstreamFailed(ApiError):
    status, type, default_code = 502, "upstream_error", "upstream_error"


class NoHealthyBackend(ApiError):
    status, type, default_code = 503, "service_unavailable_error", "no_healthy_backend"
    retry_after_s = 5


class QueueTimeout(ApiError):
    status, type, default_code = 503, "service_unavailable_error", "queue_timeout"
    retry_after_s = 5


class Cancelled(ApiError):
    status, type, default_code = 503, "cancelled", "cancelled"


class ClientLeft(ApiError):
    status, type, default_code = 499, "client_left", "client_left"


class UpstreamTimeout(ApiError):
    status, type, default_code = 504, "timeout_error", "upstream_timeout"


def dialect_of(path: str) -> Dialect:
    """The API family whose error shape a client of `path` expects."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    # /api/v1/* is llmtap's own management API, the rest of /api/* is Ollama's
    if path.startswith("/api/") and not path.startswith("/api/v1/"):
        return "ollama"
    return "openai"


#: Anthropic's documented error types by HTTP status (https://docs.anthropic.com/en/api/errors)
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_object(error: ApiError, dialect: Dialect) -> dict[str, Any]:
    """The JSON of an error answer: OpenAI `{"error": {…}}`, Anthropic `{"type": "error", …}`, Ollama `{"error": "text"}`."""
    if dialect == "ollama":
        return {"error": error.message}
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_body(error: ApiError, dialect: Dialect) -> bytes:
    """`error_object` as JSON bytes."""
    return orjson.dumps(error_object(error, dialect))


def stream_error(error: ApiError, dialect: Dialect) -> bytes:
    """The last event of a stream that broke after its first byte, in the framing of the client's dialect."""
    body = error_body(error, dialect)
    if dialect == "ollama":
        return body + b"\n"
    if dialect == "anthropic":
        return b"event: error\ndata: " + body + b"\n\n"
    return b"data: " + body + b"\n\n"
