"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`, as vLLM 0.33 answers them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from . import generate, template
from .bodies import EVENT_STREAM, JSON, Envelope, Json, named_event
from .errors import INTERNAL_MESSAGE, VllmError
from .front import received
from .requests import ChatRequest, parse
from .script import Step
from .simulation import Simulation

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class AnthropicError(VllmError):
    """A refusal in Anthropic's shape."""

    def object(self) -> dict[str, Any]:
        """`{"type": "error", "error": {"type", "message"}}`."""
        return {"type": "error", "error": {"type": self.type, "message": self.message}}


class MessagesRequest(BaseModel):
    """Body of `POST /v1/messages`; `max_tokens` is only missing when tokens are counted."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    messages: list[Json]
    system: str | list[Json] | None = None
    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Json] | None = None
    tool_choice: Json | None = None

    def chat(self) -> ChatRequest:
        """The same request in OpenAI's words, as vLLM translates it."""
        messages: list[Json] = [{"role": "system", "content": _text(self.system)}] if self.system else []
        for message in self.messages:
            messages += _turns(str(message.get("role", "user")), message.get("content", ""))
        body: Json = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens, "stop": self.stop_sequences}
        body |= {"temperature": self.temperature, "top_p": self.top_p, "stream": bool(self.stream)}
        if self.tools:
            body["tools"] = [{"type": "function", "function": _function(tool)} for tool in self.tools]
            wanted = self.tool_choice or {"type": "auto"}
            named = {"type": "function", "function": {"name": wanted.get("name")}}
            body["tool_choice"] = named if wanted.get("type") == "tool" else _CHOICES.get(str(wanted.get("type")), "auto")
        return ChatRequest.model_validate(body)


def _function(tool: Json) -> Json:
    return {"name": tool.get("name", ""), "description": tool.get("description"), "parameters": tool.get("input_schema")}


def _text(content: str | list[Json] | None) -> str:
    if isinstance(content, list):
        return "\n".join(str(block["text"]) for block in content if isinstance(block, dict) and "text" in block)
    return content or ""


def _turns(role: str, content: Any) -> list[Json]:
    """One message; the results of tools in it are messages of their own."""
    if not isinstance(content, list):
        return [{"role": role, "content": str(content)}]
    blocks = [block for block in content if isinstance(block, dict)]
    results = [{"role": "tool", "content": _text(b.get("content"))} for b in blocks if b.get("type") == "tool_result"]
    calls = [
        {"function": {"name": b.get("name"), "arguments": json.dumps(b.get("input"))}}
        for b in blocks
        if b.get("type") == "tool_use"
    ]
    text = _text(blocks)
    said = [{"role": role, "content": text, "tool_calls": calls or None}] if text or calls or not results else []
    return results + said


async def messages(sim: Simulation, request: Request) -> Response:
    """`POST /v1/messages`. Raises VllmError."""
    got = received(request.scope)
    body = parse(MessagesRequest, request.headers.get("content-type", ""), got.body)
    chat = _chat(body)
    model = _served(sim, body.model)
    talk = generate.converse(sim, got.directives, chat)
    writer = MessagesWriter(generate.envelope(request, "chatcmpl", model), len(talk.prompt))
    return generate.respond(sim, got, chat, writer, talk.scripts, [len(talk.prompt)], talk.max_tokens)


async def count_tokens(sim: Simulation, request: Request) -> Response:
    """`POST /v1/messages/count_tokens`. Raises VllmError."""
    got = received(request.scope)
    body = parse(MessagesRequest, request.headers.get("content-type", ""), got.body)
    _served(sim, body.model)
    chat = _chat(body)
    count = len(sim.tokenizer.encode(template.render(chat.messages, chat.tools)))
    answer = {"input_tokens": count, "context_management": {"original_input_tokens": count}}
    return Response(orjson.dumps(answer), media_type="application/json")


def _served(sim: Simulation, name: str | None) -> str:
    try:
        return generate.check_model(sim, name)
    except VllmError as error:
        raise AnthropicError(error.message, type=error.type, code=error.code) from None


def _chat(body: MessagesRequest) -> ChatRequest:
    try:
        return body.chat()
    except ValueError as error:
        raise AnthropicError(str(error).splitlines()[0]) from None


class MessagesWriter:
    """Content blocks one after the other: thinking, text, tool uses."""

    media_type = EVENT_STREAM
    whole_type = JSON
    end = b""

    def __init__(self, envelope: Envelope, prompt_tokens: int) -> None:
        self._envelope = envelope
        self._prompt_tokens = prompt_tokens
        self._count = 0
        self._block: tuple[str, int] | None = None  # channel and call of the open one
        self._index = -1
        self._called = False
        self._last: Step | None = None

    def opening(self) -> list[bytes]:
        """`message_start`, which knows the prompt's tokens."""
        message: Json = {"id": self._envelope.id, "type": "message", "role": "assistant", "content": []}
        message["model"] = self._envelope.model
        message |= {"stop_reason": None, "stop_sequence": None, "usage": self._usage(0)}
        return [named_event({"type": "message_start", "message": message})]

    def step(self, choice: int, step: Step) -> bytes | None:
        """A delta, after what closes the block before it and opens its own."""
        self._count += 1
        self._last = step
        if step.channel == "control" or not step.delta:
            return None
        kind = "tool" if step.channel.startswith("tool") else step.channel
        out = b""
        if self._block != (kind, step.call):
            out = self._close() + self._open(kind, step)
        if step.channel == "tool_name":
            return out
        delta = {
            "reasoning": {"type": "thinking_delta", "thinking": step.delta},
            "content": {"type": "text_delta", "text": step.delta},
            "tool_args": {"type": "input_json_delta", "partial_json": step.delta},
        }[step.channel]
        return out + named_event({"type": "content_block_delta", "delta": delta, "index": self._index})

    def closing(self) -> list[bytes]:
        """The end of the last block, `message_delta` with the token counts, `message_stop`."""
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": self._last.stop_reason if self._last else None}
        events = [self._close()] if self._block else []
        return [
            *events,
            named_event({"type": "message_delta", "delta": delta, "usage": self._usage(self._count)}),
            named_event({"type": "message_stop"}),
        ]

    def whole(self, scripts: Sequence[Sequence[Step]]) -> bytes:
        """The `message` object."""
        (steps,) = scripts
        self._count, self._last = len(steps), steps[-1]
        content: list[Json] = []
        thoughts, text = _joined(steps, "reasoning"), _joined(steps, "content")
        if thoughts:
            content.append({"type": "thinking", "thinking": thoughts, "signature": uuid.uuid4().hex})
        if text:
            content.append({"type": "text", "text": text})
        for step in steps:
            if step.channel == "tool_name":
                self._called = True
                arguments = "".join(s.delta for s in steps if s.channel == "tool_args" and s.call == step.call)
                content.append({"type": "tool_use", "id": _tool_id(), "name": step.delta, "input": _object(arguments)})
        message: Json = {"id": self._envelope.id, "type": "message", "role": "assistant", "content": content}
        message |= {"model": self._envelope.model, "stop_reason": self._stop_reason()}
        if self._last.stop_reason:
            message["stop_sequence"] = self._last.stop_reason
        return orjson.dumps({**message, "usage": self._usage(self._count)})

    def failure(self) -> bytes:
        """Anthropic's error event."""
        return self._close() + named_event({"type": "error", "error": {"type": "api_error", "message": INTERNAL_MESSAGE}})

    def _open(self, kind: str, step: Step) -> bytes:
        self._block = kind, step.call
        self._index += 1
        if kind == "tool":
            self._called = True
            block: Json = {"type": "tool_use", "id": _tool_id(), "name": step.delta, "input": {}}
        else:
            block = {"type": "thinking", "thinking": ""} if kind == "reasoning" else {"type": "text", "text": ""}
        return named_event({"type": "content_block_start", "content_block": block, "index": self._index})

    def _close(self) -> bytes:
        if self._block is None:
            return b""
        signature = b""
        if self._block[0] == "reasoning":
            delta = {"type": "signature_delta", "signature": uuid.uuid4().hex}
            signature = named_event({"type": "content_block_delta", "delta": delta, "index": self._index})
        self._block = None
        return signature + named_event({"type": "content_block_stop", "index": self._index})

    def _stop_reason(self) -> str:
        step = self._last
        if step is None or step.finish == "length":
            return "max_tokens"
        if step.stop_reason:
            return "stop_sequence"
        return "tool_use" if self._called else "end_turn"

    def _usage(self, completion: int) -> Json:
        return {"input_tokens": self._prompt_tokens, "output_tokens": completion}


def _joined(steps: Sequence[Step], channel: str) -> str:
    return "".join(step.delta for step in steps if step.channel == channel)


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # cut by max_tokens
        return {}


def _tool_id() -> str:
    return f"chatcmpl-tool-{uuid.uuid4().hex[:16]}"
