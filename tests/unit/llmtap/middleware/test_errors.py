"""Errors are ours, and the standard library's where it has a word for them."""

from __future__ import annotations

from llmtap.core.errors import LlmtapError
from llmtap.middleware.errors import VLLMConnectionError, VLLMError, VLLMStatusError, VLLMStreamError, VLLMTimeout


def test_the_tree() -> None:
    assert all(issubclass(kind, VLLMError) for kind in (VLLMConnectionError, VLLMStatusError, VLLMStreamError, VLLMTimeout))
    assert issubclass(VLLMError, LlmtapError)
    assert issubclass(VLLMTimeout, TimeoutError)
    assert issubclass(VLLMConnectionError, ConnectionError)


def test_what_they_say() -> None:
    error = VLLMStatusError("no such model", status=404, type="NotFoundError", body={"x": 1}, request_id="u1")
    assert (str(error), error.status, error.type, error.body, error.request_id) == (
        "404: no such model", 404, "NotFoundError", {"x": 1}, "u1",
    )  # fmt: skip
    assert str(VLLMStatusError("", status=500, type="http_500", body="")) == "the server answered 500"
