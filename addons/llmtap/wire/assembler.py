"""What every reply format has in common: events or one whole body in, a `Summary` out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from llmtap.core.record import Choice, Summary, Usage
from llmtap.wire.faults import error_of
from llmtap.wire.jsonload import load_object
from llmtap.wire.shapes import MAX_LEARNED, MAX_SHAPES, Shape, Slot, learn
from llmtap.wire.values import extra, string


class Assembler(ABC):
    """Puts one reply together. `event` and `whole` raise WireError for what is not the format; what was there stays.

    `complete` is set by a terminal event or a whole body. An error event ends a stream without completing it, unless the
    server goes on to send its terminal event (vLLM's `[DONE]`).
    """

    #: the format writes the same bytes around each text
    repeats = False

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.model: str | None = None
        self.usage = Usage()
        self.error_type: str | None = None
        self.error_message: str | None = None
        self.complete = False
        self.meta: dict[str, Any] = {}
        self.streamed = False
        self.content_events = 0
        self.token_ids = 0  # generated token ids seen, when the client asked for them
        self.shapes: list[Shape] = []  # of events that may come again: for `stream`, which takes their texts without parsing
        self.last_shape: Shape | None = None  # of the event before, None when it came the long way
        self.learned = 0 if self.repeats else MAX_LEARNED

    def event(self, name: str, data: bytes) -> bool:
        """One event of a stream: whether it carried content (text, reasoning, refusal or a tool-call fragment)."""
        self.streamed = True
        if self.complete or not data or data.isspace():
            return False
        self.last_shape = None
        event = load_object(data)
        if self.take(name, event):
            self.content_events += 1
            if self.learned < MAX_LEARNED:
                self._learn(name, data, event)
            return True
        return False

    def _learn(self, name: str, data: bytes, event: dict[str, Any]) -> None:
        slot = self.slot(name, event)
        if slot is None:
            return
        self.learned += 1
        shape = learn(name, data, slot)
        if shape is not None:
            self.shapes.insert(0, shape)
            del self.shapes[MAX_SHAPES:]

    def slot(self, name: str, event: dict[str, Any]) -> Slot | None:
        """Where the text of this event stands, if the event, already taken, does nothing but add its text (and what the
        slot's `restore` does again). Only called when `repeats`."""
        return None

    def whole(self, reply: dict[str, Any]) -> bool:
        """A reply that came as one body: whether it carried content."""
        content = self.take_whole(reply)
        self.complete = True
        return content

    def skim(self, body: bytes) -> bool:
        """Reads only what is needed of a large whole body, if that can be told apart; False leaves it to `whole`."""
        return False

    def finish(self) -> None:
        """The reply is over. A stream that told no usage (aborted, or not asked) gets its completion tokens estimated."""
        if self.streamed and self.usage.source == "none" and self.content_events:
            self.estimate()

    def estimate(self) -> None:
        """From what was streamed: the token ids when they were sent, else one token for each content event, as engines emit
        about a token an event. Where a server that lagged behind put several into one, the words of the text are more: no
        token is longer than a word."""
        self.usage.completion_tokens = self.token_ids or max(self.content_events, self.words())
        self.usage.source = "estimated"

    @abstractmethod
    def take(self, name: str, event: dict[str, Any]) -> bool:
        """One parsed event."""

    @abstractmethod
    def take_whole(self, reply: dict[str, Any]) -> bool:
        """One parsed body."""

    @abstractmethod
    def choices(self) -> list[Choice]:
        """The choices so far."""

    def words(self) -> int:
        """Words of text and reasoning so far."""
        texts = (text for choice in self.choices() for text in (choice.content, choice.reasoning) if text)
        return sum(len(text.split()) for text in texts)

    def take_error(self, reply: dict[str, Any]) -> bool:
        """Notes the error an event or body carries, if any."""
        found = error_of(reply)
        if found is None:
            return False
        self.error_type = found[0] or "error"
        self.error_message = found[1]
        return True

    def identify(self, reply: dict[str, Any]) -> None:
        """Id and model, from the first event that has them."""
        if self.response_id is None:
            self.response_id = string(reply.get("id"))
        if self.model is None:
            self.model = string(reply.get("model"))

    def note(self, name: str, value: Any) -> None:
        """Keeps a small extra; a later value of the same name wins."""
        value = extra(value)
        if value is not None:
            self.meta[name] = value

    def summary(self) -> Summary:
        """What is understood so far."""
        return Summary(
            response_id=self.response_id,
            model=self.model,
            choices=self.choices(),
            usage=self.usage,
            error_type=self.error_type,
            error_message=self.error_message,
            complete=self.complete,
            meta=self.meta,
        )
