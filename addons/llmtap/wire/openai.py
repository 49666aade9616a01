"""OpenAI chat completions, completions and transcriptions, streamed and whole, as vLLM, Ollama, llama.cpp, transformers
and OpenAI itself write them.

One reader serves all: a choice carries `delta` (streamed chat), `message` (whole chat) or `text` (completions), never two
of them. This is the hot path of the gateway, one call a streamed token, hence plain `type(x) is` tests and no helpers.
Multi-prompt completions count their choices through (index = choice + prompt * n); an echoed prompt is part of the text;
logprobs are left alone.
"""

from __future__ import annotations

from typing import Any

import orjson

from llmtap.core.record import Choice, Summary, Usage
from llmtap.wire.assembler import Assembler
from llmtap.wire.engine_times import counts_of
from llmtap.wire.merge import Call, Parts
from llmtap.wire.shapes import Slot
from llmtap.wire.usage import is_zero, openai_usage
from llmtap.wire.values import extra, flatten, integer, json_text, string

#: small extras of a chunk or a body that are kept
_NOTES = ("system_fingerprint", "timings", "metrics", "service_tier")
#: what only some events of a choice have, and what differs with each
_ENDING = ("finish_reason", "stop_reason", "token_ids", "logprobs")
_TEXTS = ("content", "reasoning", "reasoning_content")
#: the members of a plain whole reply, and of its choice: what says something only where it is looked at, or never
_PLAIN = frozenset(("id", "object", "created", "model", "choices", "usage", "system_fingerprint"))
_PLAIN_CHOICE = frozenset(("index", "message", "logprobs", "finish_reason"))


class OpenAIAssembler(Assembler):
    """`text=True` for text completions, whose empty content is "" and not None."""

    repeats = True

    def __init__(self, *, text: bool = False) -> None:
        super().__init__()
        self._text = text
        self._parts: dict[int, Parts] = {}

    def event(self, name: str, data: bytes) -> bool:
        if data[:1] != b"{" and data.strip() == b"[DONE]":
            self.streamed = True
            self.complete = True
            return False
        return super().event(name, data)

    def take(self, name: str, event: dict[str, Any]) -> bool:
        content = self._chunk(event, streamed=True)
        if "error" in event or "choices" not in event:
            self.take_error(event)
        return content

    def take_whole(self, reply: dict[str, Any]) -> bool:
        content = self._chunk(reply, streamed=False)
        self.take_error(reply)
        return content

    def finish(self) -> None:
        # transformers serve and others never send [DONE]: a stream all of whose choices have finished is whole
        if self.streamed and self._parts and self.error_type is None:
            self.complete = self.complete or all(parts.finish_reason is not None for parts in self._parts.values())
        # of one choice only
        counts = counts_of(self.meta.get("timings")) if self.usage.source == "none" and len(self._parts) == 1 else None
        if counts is not None:
            self.usage = Usage(*counts, source="upstream")
        super().finish()

    def slot(self, name: str, event: dict[str, Any]) -> Slot | None:
        choices = event.get("choices")
        if type(choices) is not list or len(choices) != 1 or event.get("usage") is not None or "error" in event:
            return None
        choice = choices[0]
        index = choice.get("index", 0)
        parts = self._parts.get(index) if type(index) is int else None
        if parts is None or any(choice.get(member) is not None for member in _ENDING):
            return None
        meta = self.meta  # not self: the shapes belong to it
        notes = {name: value for name in _NOTES if (value := extra(event.get(name))) is not None}
        delta = choice.get("delta")
        if type(delta) is dict:
            given = [member for member, value in delta.items() if value and member != "role"]
            if len(given) != 1 or given[0] not in _TEXTS or delta.get("function_call") is not None:
                return None
            role = delta.get("role") or None
            to = parts.content if given[0] == "content" else parts.reasoning
            if role is not None and len(to) == 1:
                return None  # few servers say it again with the next text
            path: tuple[str | int, ...] = ("choices", 0, "delta", given[0])
        elif type(choice.get("message")) is dict:
            return None
        else:
            role, to, path = None, parts.content, ("choices", 0, "text")

        def restore() -> None:
            meta.update(notes)
            if type(role) is str:
                parts.role = role

        return Slot(path, to, restore if notes or role is not None else None)

    def choices(self) -> list[Choice]:
        return [self._parts[index].build(keep_empty=self._text) for index in sorted(self._parts)]

    def _chunk(self, chunk: dict[str, Any], *, streamed: bool) -> bool:
        if self.response_id is None or self.model is None:
            self.identify(chunk)
        choices = chunk.get("choices")
        if type(choices) is not list:
            choices = ()
        usage = chunk.get("usage")
        if usage is not None:
            self._usage(usage, final=not streamed or not choices)
        for name in _NOTES:
            if name in chunk:
                self.note(name, chunk[name])
        content = False
        for choice in choices:
            if type(choice) is dict and self._choice(choice):
                content = True
        return content

    def _usage(self, raw: Any, *, final: bool) -> None:
        usage = openai_usage(raw)
        # the last usage wins, but zeros never overwrite a real count, and zeros beside content are no count at all
        # (Ollama's completions put them on every chunk)
        if usage is not None and not (is_zero(usage) and (not final or self.usage.source == "upstream")):
            self.usage = usage

    def _choice(self, choice: dict[str, Any]) -> bool:
        index = choice.get("index", 0)
        parts = self._parts.get(index) if type(index) is int else None
        if parts is None:
            index = integer(index) or 0
            parts = self._parts.setdefault(index, Parts(index))
        content = False
        message = choice.get("delta")
        if type(message) is dict:
            content = self._message(parts, message)
        elif type(choice.get("message")) is dict:
            content = self._message(parts, choice["message"], whole=True)
        else:
            text = choice.get("text")
            if type(text) is str and text:
                parts.content.append(text)
                content = True
        reason = choice.get("finish_reason")
        if reason is not None:
            parts.finish_reason = string(reason) or parts.finish_reason
        if choice.get("stop_reason") is not None:
            self.note("stop_reason", choice["stop_reason"])
        ids = choice.get("token_ids")
        if type(ids) is list:
            self.token_ids += len(ids)
        return content

    @staticmethod
    def _message(parts: Parts, message: dict[str, Any], *, whole: bool = False) -> bool:
        content = False
        text = message.get("content")
        if text:
            text = text if type(text) is str else flatten(text)
            if text:
                parts.content.append(text)
                content = True
        # some servers send both names with the same text
        thought = message.get("reasoning") or message.get("reasoning_content")
        if type(thought) is str and thought:
            parts.reasoning.append(thought)
            content = True
        if content and len(message) == 1:  # the usual delta
            return True
        refusal = message.get("refusal")
        if type(refusal) is str and refusal:
            parts.refusal.append(refusal)
            content = True
        calls = message.get("tool_calls")
        if calls and _calls(parts, calls, whole):
            content = True
        legacy = message.get("function_call")
        if type(legacy) is dict:
            content = _legacy(parts, legacy) or content
        role = message.get("role")
        if type(role) is str and role:
            parts.role = role
        return content


def plain_chat(body: bytes) -> Summary | None:
    """The summary of a whole chat reply of the plainest kind (one choice, text alone), as most replies that are not streamed
    are: equal to what the decoder comes to, in a third of the time. None: let the decoder read it."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(reply) is not dict:
        return None
    choices, usage = reply.get("choices"), reply.get("usage")
    if type(choices) is not list or len(choices) != 1 or type(usage) is not dict or reply.get("object") == "error":
        return None
    choice = choices[0]
    if type(choice) is not dict or _says_more(reply, _PLAIN) or _says_more(choice, _PLAIN_CHOICE):
        return None
    message, reason, notes = choice.get("message"), choice.get("finish_reason"), reply.get("system_fingerprint")
    if type(message) is not dict or type(reason) is not str or choice.get("index") != 0:
        return None
    for name, value in message.items():
        if (value or type(value) is dict) and name != "content" and (name != "role" or value != "assistant"):
            return None
    text, id, model = message.get("content"), reply.get("id"), reply.get("model")
    counted = openai_usage(usage)
    if (
        not (type(text) is str and text and type(id) is str and type(model) is str)
        or not (text.isascii() and id.isascii() and model.isascii() and reason.isascii() and reason)
        or not (notes is None or (type(notes) is str and len(notes) < 100 and notes.isascii()))
        or counted is None
    ):
        return None
    parts = Choice(0, "assistant", text, finish_reason=reason)
    meta = {} if notes is None else {"system_fingerprint": notes}
    return Summary(id, model, [parts], counted, complete=True, meta=meta)


def _says_more(members: dict[str, Any], known: frozenset[str]) -> bool:
    for name, value in members.items():  # noqa: SIM110 (a generator costs three times as much)
        if value is not None and name not in known:
            return True
    return False


def _calls(parts: Parts, fragments: Any, whole: bool) -> bool:
    content = False
    if type(fragments) is list:
        for fragment in fragments:
            if type(fragment) is dict and parts.add_call(fragment, whole=whole):
                content = True
    return content


def _legacy(parts: Parts, fragment: dict[str, Any]) -> bool:
    """The function call of before tool calls: one a message, without an id."""
    if parts.legacy_call is None:
        parts.legacy_call = Call()
    name, arguments = string(fragment.get("name")) or "", json_text(fragment.get("arguments"))
    if name and not parts.legacy_call.name:
        parts.legacy_call.name = name
    if arguments:
        parts.legacy_call.append(arguments)
    return bool(name or arguments)
