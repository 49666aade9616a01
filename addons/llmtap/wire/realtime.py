"""The realtime websocket of vLLM (`/v1/realtime`): speech in, transcription out, one JSON object a message.

    client  session.update {model}   input_audio_buffer.append {audio: base64}   input_audio_buffer.commit
    server  session.created {id}     transcription.delta {delta}   transcription.done {text, usage}   error {error, code}

Each `transcription.done` ends one utterance; a session may have several, which together are its text.
"""

from __future__ import annotations

from typing import Any

import orjson

from llmtap.core.record import Choice, Summary, Usage
from llmtap.wire.usage import openai_usage
from llmtap.wire.values import clean, string

#: client messages up to this size are read: longer ones carry audio
_SHORT = 4096
#: of a transcription
_MAX_TEXT = 4 << 20
_INTERESTING = ('"transcription.', '"session.created"', '"error"')


class Realtime:
    """`client` and `server` are shown every text message of that side. `summary` is what has been learned so far."""

    def __init__(self) -> None:
        self.summary = Summary()
        self._said: list[str] = []  # utterances that are complete
        self._saying: list[str] = []  # deltas of the one that is not
        self._size = 0

    def client(self, text: str) -> None:
        if len(text) <= _SHORT and '"session.update"' in text:
            event = _object(text)
            session = event.get("session")  # OpenAI nests what vLLM has at the top
            model = event.get("model") or (session.get("model") if type(session) is dict else None)
            self.summary.model = string(model) or self.summary.model

    def server(self, text: str) -> bool:
        """True when the message carried a piece of the transcription."""
        if not any(mark in text for mark in _INTERESTING):
            return False
        event = _object(text)
        match event.get("type"):
            case "session.created":
                session = event.get("session")
                found = event.get("id") or (session.get("id") if type(session) is dict else None)
                self.summary.response_id = string(found) or self.summary.response_id
            case "transcription.delta":
                return self._delta(event.get("delta"))
            case "transcription.done":
                self._done(event)
            case "error":
                self._error(event)
        return False

    def close(self) -> None:
        """The session is over: what was said and not finished is kept."""
        self._finish("".join(self._saying))

    def _delta(self, delta: Any) -> bool:
        if type(delta) is not str or not delta or self._size > _MAX_TEXT:
            return False
        self._size += len(delta)
        self._saying.append(delta)
        return True

    def _done(self, event: dict[str, Any]) -> None:
        text = event.get("text")
        self._finish(text if type(text) is str else "".join(self._saying))
        usage = openai_usage(event.get("usage"))
        if usage is not None:
            self.summary.usage = _sum(self.summary.usage, usage)
        self.summary.complete = True

    def _finish(self, text: str) -> None:
        self._saying.clear()
        if text:
            self._said.append(text)
            self.summary.choices = [Choice(0, content=clean("\n".join(self._said)))]

    def _error(self, event: dict[str, Any]) -> None:
        error = event.get("error")
        about = error if type(error) is dict else {"message": error, "type": event.get("code")}
        self.summary.error_type = string(about.get("type")) or "error"
        self.summary.error_message = string(about.get("message"))


def _object(text: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except ValueError:
        return {}
    return found if type(found) is dict else {}


def _sum(one: Usage, other: Usage) -> Usage:
    def add(a: int | None, b: int | None) -> int | None:
        return b if a is None else a if b is None else a + b

    return Usage(
        add(one.prompt_tokens, other.prompt_tokens),
        add(one.completion_tokens, other.completion_tokens),
        add(one.cached_tokens, other.cached_tokens),
        add(one.reasoning_tokens, other.reasoning_tokens),
        other.source,
    )
