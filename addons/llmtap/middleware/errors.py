"""What a call can end in.

LlmtapError
└── VLLMError                 a call failed; `request_id` finds it in the log
    ├── VLLMStatusError       the server answered with an error: `status`, `type`, `body`
    ├── VLLMConnectionError   it was not reached, or hung up before it answered (a ConnectionError too)
    ├── VLLMTimeout           it did not answer in time (a TimeoutError too)
    └── VLLMStreamError       the stream broke: hung up, an error event, not OpenAI's format
"""

from __future__ import annotations

from typing import Any

from llmtap.core.errors import LlmtapError


class VLLMError(LlmtapError):
    """A call failed. `request_id`: as in the log; `type`: class of the error, as in the log."""

    type = "error"

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class VLLMStatusError(VLLMError):
    """The server's answer has an error status. `body`: its JSON, or its text."""

    def __init__(self, message: str, *, status: int, type: str, body: Any, request_id: str = "") -> None:
        super().__init__(f"{status}: {message}" if message else f"the server answered {status}", request_id=request_id)
        self.status = status
        self.type = type
        self.body = body


class VLLMConnectionError(VLLMError, ConnectionError):
    """No answer: the server was not reached, or hung up."""

    type = "connection_error"


class VLLMTimeout(VLLMError, TimeoutError):
    """No answer in time."""

    type = "timeout"


class VLLMStreamError(VLLMError):
    """The answer broke off, or is none that OpenAI's API gives. What came before it was handed out."""

    type = "stream_error"
