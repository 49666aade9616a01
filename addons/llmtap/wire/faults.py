"""Error bodies and error events of every shape in use → (type, message).

Shapes (vLLM, FastAPI, Ollama, llama.cpp, Anthropic, transformers):
`{"error": {"message", "type", "param", "code"}}`, `{"error": "text"}`, `{"error": "<JSON of another error>"}`,
`{"type": "error", "error": {"type", "message"}}`, `{"object": "error", "message", "type"}`, `{"detail": "text"}`,
`{"detail": [{"loc", "msg", "type"}]}`, `{"message": "text"}`, plain text.
"""

from __future__ import annotations

from typing import Any

from llmtap.core.errors import WireError
from llmtap.wire.jsonload import load_object
from llmtap.wire.values import clean, json_text, string

MAX_MESSAGE = 2000


def describe(error: Any, depth: int = 0) -> tuple[str | None, str]:
    """Type (None when it says none) and message of the value that stands where an error is expected."""
    if type(error) is dict:
        inner = error.get("error")
        if type(inner) is dict and depth < 3:
            return describe(inner, depth + 1)
        kind = string(error.get("type"))
        if kind is None or kind == "error":  # Responses' error event says what it is in `code`
            kind = string(error.get("code")) or kind
        for name in ("message", "msg", "error", "detail"):
            text = string(error.get(name))
            if text:
                return kind, text[:MAX_MESSAGE]
        return kind, clean(json_text(error))[:MAX_MESSAGE]
    if type(error) is str:
        if error.startswith("{") and depth < 3:  # Ollama passes its runner's JSON error on as a string
            try:
                return describe(load_object(error.encode("utf-8", "replace")), depth + 1)
            except WireError:
                pass
        return None, clean(error)[:MAX_MESSAGE]
    if type(error) is list:
        return None, "; ".join(_validation(item) for item in error[:5])[:MAX_MESSAGE]
    return None, clean(json_text(error))[:MAX_MESSAGE]


def _validation(item: Any) -> str:
    # FastAPI's list of validation errors. Its `input` is left out: that is the caller's own text
    if type(item) is not dict:
        return clean(json_text(item))
    where = item.get("loc")
    path = ".".join(str(step) for step in where) if type(where) is list else ""
    text = string(item.get("msg")) or string(item.get("type")) or "invalid"
    return clean(f"{path}: {text}") if path else text


def error_of(reply: dict[str, Any]) -> tuple[str | None, str] | None:
    """The error that a JSON object of any status or event carries, or None: replies may have `"error": null`."""
    error = reply.get("error")
    if error:
        return describe(error)
    if reply.get("object") == "error" or reply.get("type") == "error":
        return describe(reply)
    detail = reply.get("detail")
    if detail and "choices" not in reply:
        return describe(detail)
    return None


def body_error(body: bytes, status: int) -> tuple[str, str]:
    """Type and message of the body of an answer with `status` >= 400; the type is `http_<status>` when the body names none."""
    try:
        reply = load_object(body)
    except WireError:
        kind, message = None, clean(body[: 4 * MAX_MESSAGE].decode("utf-8", "replace").strip())[:MAX_MESSAGE]
    else:
        kind, message = error_of(reply) or describe(reply)
    return kind or f"http_{status}", message
