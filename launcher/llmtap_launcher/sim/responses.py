"""OpenAI's `/v1/responses`, as vLLM 0.33 answers it: everything twice, in deltas and in the last event, and no `[DONE]`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from . import generate
from .bodies import EVENT_STREAM, JSON, Envelope, Json, named_event
from .errors import VllmError
from .front import received
from .requests import ChatRequest, parse
from .script import Step
from .simulation import Simulation

_TEXT_TYPES = ("input_text", "output_text", "text")


class ResponsesRequest(BaseModel):
    """Body of `POST /v1/responses`."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    input: str | list[Json]
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Json] = []
    tool_choice: str | Json = "auto"

    def chat(self) -> ChatRequest:
        """The same request as a chat, as vLLM translates it."""
        messages: list[Json] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        for item in items:
            messages += _turn(item)
        body: Json = {"model": self.model, "messages": messages, "max_tokens": self.max_output_tokens}
        body |= {"temperature": self.temperature, "top_p": self.top_p, "stream": bool(self.stream)}
        functions = [tool for tool in self.tools if tool.get("type", "function") == "function"]
        if functions:
            body["tools"] = [{"type": "function", "function": tool} for tool in functions]
            choice = self.tool_choice
            body["tool_choice"] = choice if isinstance(choice, str) else {"function": {"name": choice.get("name")}}
        return ChatRequest.model_validate(body)


def _turn(item: Json) -> list[Json]:
    kind = item.get("type", "message")
    if kind == "function_call":
        call = {"function": {"name": item.get("name"), "arguments": item.get("arguments")}}
        return [{"role": "assistant", "content": "", "tool_calls": [call]}]
    if kind == "function_call_output":
        return [{"role": "tool", "content": str(item.get("output", ""))}]
    if kind != "message":  # reasoning of earlier turns and the like
        return []
    content = item.get("content", "")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if part.get("type") in _TEXT_TYPES)
    return [{"role": item.get("role", "user"), "content": content}]


async def responses(sim: Simulation, request: Request) -> Response:
    """`POST /v1/responses`. Raises VllmError."""
    got = received(request.scope)
    body = parse(ResponsesRequest, request.headers.get("content-type", ""), got.body)
    model = generate.check_model(sim, body.model)
    try:
        chat = body.chat()
    except ValueError as error:
        raise VllmError(str(error).splitlines()[0]) from None
    talk = generate.converse(sim, got.directives, chat)
    writer = ResponsesWriter(body, generate.envelope(request, "resp", model), len(talk.prompt), talk.max_tokens)
    return generate.respond(sim, got, chat, writer, talk.scripts, [len(talk.prompt)], talk.max_tokens)


class ResponsesWriter:
    """Output items one after the other: reasoning, message, function calls."""

    media_type = EVENT_STREAM
    whole_type = JSON
    end = b""

    def __init__(self, request: ResponsesRequest, envelope: Envelope, prompt_tokens: int, max_tokens: int) -> None:
        self._request = request
        self._envelope = envelope
        # vLLM says `resp_` where its other ids have a dash
        self._id = envelope.id.replace("resp-", "resp_", 1)
        self._prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens
        self._count = 0
        self._thoughts = 0
        self._sequence = 0
        self._output: list[Json] = []  # items, the last of which may be open
        self._open: tuple[str, int] | None = None  # channel and call of the open one
        self._texts: list[str] = []
        self._last: Step | None = None

    def opening(self) -> list[bytes]:
        """`response.created` and `response.in_progress`."""
        return [
            self._event("response.created", {"response": self._response("in_progress")}),
            self._event("response.in_progress", {"response": self._response("in_progress")}),
        ]

    def step(self, choice: int, step: Step) -> bytes | None:
        """A delta, after what ends the item before it and begins its own."""
        self._note(step)
        if step.channel == "control" or not step.delta:
            return None
        kind = "tool" if step.channel.startswith("tool") else step.channel
        out = b""
        if self._open != (kind, step.call):
            out = self._close() + self._begin(kind, step)
        if step.channel == "tool_name":
            return out
        self._texts.append(step.delta)
        item = self._output[-1]
        where: Json = {"item_id": item["id"], "output_index": len(self._output) - 1}
        if step.channel == "tool_args":
            return out + self._event("response.function_call_arguments.delta", {"delta": step.delta, **where})
        delta: Json = {"content_index": 0, "delta": step.delta, "item_id": item["id"]}
        if step.channel == "content":
            delta["logprobs"] = []
        name = "response.output_text.delta" if step.channel == "content" else "response.reasoning_text.delta"
        return out + self._event(name, {**delta, "output_index": where["output_index"]})

    def closing(self) -> list[bytes]:
        """The end of the last item, and `response.completed` with all of it and the token counts."""
        events = [self._close()] if self._open else []
        return [*events, self._event("response.completed", {"response": self._response(self._status())})]

    def whole(self, scripts: Sequence[Sequence[Step]]) -> bytes:
        """The `response` object."""
        (steps,) = scripts
        for step in steps:
            self.step(0, step)
        self._close()
        return orjson.dumps(self._response(self._status()))

    def failure(self) -> None:
        """vLLM just cuts the stream."""

    def _note(self, step: Step) -> None:
        self._count += 1
        self._thoughts += step.channel == "reasoning"
        self._last = step

    def _begin(self, kind: str, step: Step) -> bytes:
        self._open = kind, step.call
        self._texts = []
        index = len(self._output)
        if kind == "tool":
            item: Json = {"arguments": "", "call_id": f"chatcmpl-tool-{_hex()}", "name": step.delta, "type": "function_call"}
            item |= {"id": f"fc_{_hex()}", "async": None, "caller": None, "namespace": None, "status": "in_progress"}
            self._output.append(item)
            return self._event("response.output_item.added", {"item": item, "output_index": index})
        if kind == "reasoning":
            item = {"id": f"rs_{_hex()}", "summary": [], "type": "reasoning", "content": None}
            item |= {"encrypted_content": None, "status": "in_progress"}
            part: Json = {"text": "", "type": "reasoning_text"}
        else:
            item = {"id": f"msg_{_hex()}", "content": [], "role": "assistant", "status": "in_progress"}
            item |= {"type": "message", "phase": None}
            part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        self._output.append(item)
        return self._event("response.output_item.added", {"item": item, "output_index": index}) + self._event(
            "response.content_part.added", {"content_index": 0, "item_id": item["id"], "output_index": index, "part": part}
        )

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        kind, self._open = self._open[0], None
        index = len(self._output) - 1
        item, text = self._output[-1], "".join(self._texts)
        item["status"] = "completed"
        if kind == "tool":
            item["arguments"] = text
            done: Json = {"arguments": text, "item_id": item["id"], "output_index": index}
            out = self._event("response.function_call_arguments.done", done, name=item["name"])
        else:
            where = {"content_index": 0, "item_id": item["id"]}
            if kind == "reasoning":
                part: Json = {"text": text, "type": "reasoning_text"}
                out = self._event("response.reasoning_text.done", {**where, "output_index": index}, text=text)
            else:
                part = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
                out = self._event("response.output_text.done", {**where, "logprobs": [], "output_index": index}, text=text)
            item["content"] = [part]
            out += self._event("response.content_part.done", {**where, "output_index": index, "part": part})
        return out + self._event("response.output_item.done", {"item": item, "output_index": index})

    def _event(self, type: str, data: Json, **behind: Any) -> bytes:
        """vLLM's members are in the order of the alphabet; `text` and `name` come where that puts them."""
        numbered: Json = {**data, "sequence_number": self._sequence}
        if "text" in behind:
            numbered["text"] = behind["text"]
        numbered["type"] = type
        if "name" in behind:
            numbered["name"] = behind["name"]
        self._sequence += 1
        return named_event(numbered)

    def _status(self) -> str:
        return "incomplete" if self._last is not None and self._last.finish == "length" else "completed"

    def _response(self, status: str) -> Json:
        request = self._request
        out: Json = {
            "id": self._id,
            "created_at": self._envelope.created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "metadata": None,
            "model": self._envelope.model,
            "object": "response",
            "output": [] if status == "in_progress" else self._output,
            "parallel_tool_calls": True,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "tool_choice": request.tool_choice if request.tools else "none",
            "tools": [_tool(tool) for tool in request.tools],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "background": False,
            "max_output_tokens": self._max_tokens,
        }
        out |= dict.fromkeys(("max_tool_calls", "previous_response_id", "prompt", "prompt_cache_options", "prompt_cache_key"))
        out |= dict.fromkeys(("prompt_cache_retention", "reasoning", "safety_identifier"))
        out |= {"service_tier": "auto", "status": status, "text": None, "top_logprobs": None, "truncation": "disabled"}
        out |= {"usage": None if status == "in_progress" else self._usage(), "user": None}
        out |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        return out | dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages"))

    def _usage(self) -> Json:
        per_turn: list[int] = []
        details: Json = {"cached_tokens": 0, "cache_write_tokens": 0}
        details |= {"input_tokens_per_turn": per_turn, "cached_tokens_per_turn": per_turn}
        made: Json = {"reasoning_tokens": self._thoughts, "tool_output_tokens": 0}
        made |= {"output_tokens_per_turn": per_turn, "tool_output_tokens_per_turn": per_turn}
        return {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": details,
            "output_tokens": self._count,
            "output_tokens_details": made,
            "total_tokens": self._prompt_tokens + self._count,
        }


def _tool(tool: Json) -> Json:
    out: Json = {"name": tool.get("name"), "parameters": tool.get("parameters"), "strict": tool.get("strict")}
    out |= {"type": "function", "allowed_callers": None, "async": None, "defer_loading": None}
    return out | {"description": tool.get("description"), "output_schema": None}


def _hex() -> str:
    return uuid.uuid4().hex[:16]
