"""vLLM's refusals: status and JSON body, in its own words (recorded from vLLM 0.33 and 0.32 servers)."""

from __future__ import annotations

from typing import Any

import orjson

#: what vLLM says of any failure inside; its stream form differs between the two endpoints in white space only
INTERNAL_MESSAGE = "The server had an error while processing your request."


class VllmError(Exception):
    """A request vLLM refuses. `code` is the HTTP status, repeated in the body."""

    def __init__(self, message: str, *, type: str = "BadRequestError", param: str | None = None, code: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.type = type
        self.param = param
        self.code = code

    def object(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The object as JSON bytes."""
        return orjson.dumps(self.object())


class PlainError(VllmError):
    """A refusal in the shape of FastAPI rather than of vLLM."""

    def object(self) -> dict[str, Any]:
        """`{"detail": text}`."""
        return {"detail": self.message}


def bad_parameter(message: str, param: str, value: object = None) -> VllmError:
    """400 for one parameter; vLLM appends its name, and its value where there is one, to the message."""
    suffix = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
    return VllmError(f"{message} ({suffix})", param=param)


def unknown_model(name: str, served: list[str]) -> VllmError:
    """404 for a model that is not served."""
    message = f"The model `{name}` does not exist. Valid aliases: {', '.join(served)}."
    return VllmError(message, type="NotFoundError", param="model", code=404)


def prompt_too_long(max_model_len: int) -> VllmError:
    """400 for a prompt beyond the context; vLLM stops counting one token past it, so that is what it reports."""
    return bad_parameter(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
        f"{max_model_len + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
        "length of the input prompt.",
        "input_tokens",
        max_model_len + 1,
    )


def internal_error() -> VllmError:
    """500: a request failed inside, the engine's death included."""
    return VllmError(INTERNAL_MESSAGE, type="InternalServerError", code=500)


def busy() -> VllmError:
    """503: the queue is full."""
    return VllmError(
        "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
        type="Service Unavailable",
        code=503,
    )


def validation_error(errors: list[dict[str, Any]]) -> VllmError:
    """400 for a body that does not fit the request model, from pydantic's list of errors (at most ten are shown)."""
    lines = [f"{len(errors)} validation error{'s' if len(errors) > 1 else ''}:"]
    for error in errors[:10]:
        shown: dict[str, Any] = {
            "type": error["type"],
            "loc": ".".join(map(str, error["loc"])),
            "msg": error["msg"],
            "input": _shown_input(error["input"]),
        }
        if error.get("ctx"):
            shown["ctx"] = error["ctx"]
        lines.append(f"  {shown}")
    if len(errors) > 10:
        lines.append(f"  ...and {len(errors) - 10} more errors")
    return VllmError("\n".join(lines), type="Bad Request", param=".".join(map(str, errors[0]["loc"])))


def unsupported_media_type() -> VllmError:
    """400 (not 415) for a body that is not application/json."""
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return VllmError(message, type="Bad Request")


def unparsable_body() -> VllmError:
    """400 for a body that is not even text; FastAPI's own answer, which vLLM leaves as it is."""
    return PlainError("There was an error parsing the body")


def _shown_input(value: object) -> str:
    if isinstance(value, dict):
        return f"<dict of {len(value)} items>"
    if isinstance(value, list):
        return f"<list of {len(value)} items>"
    return str(value)
