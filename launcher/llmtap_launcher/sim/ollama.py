"""Ollama's own API: `/api/chat` and `/api/generate` (JSON lines unless `stream: false`), embeddings, and its lists.

As Ollama of August 2026 writes it: the last object has the counts, zero values are left out, thinking and tool calls are
members of the message, an error is `{"error": "text"}`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import perf_counter_ns
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from . import generate
from .bodies import Json
from .errors import INTERNAL_MESSAGE, VllmError
from .front import received
from .pooling import vector
from .requests import ChatRequest
from .script import Step
from .simulation import Simulation

VERSION = "0.31.0"
_SHUT = {"num_predict": "max_tokens", "temperature": "temperature", "top_p": "top_p", "stop": "stop"}


class OllamaError(VllmError):
    """A refusal in Ollama's shape."""

    def object(self) -> dict[str, Any]:
        """`{"error": text}`."""
        return {"error": self.message}


class OllamaRequest(BaseModel):
    """Bodies of `/api/chat` and `/api/generate`."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    messages: list[Json] | None = None
    prompt: str | None = None
    system: str | None = None
    stream: bool | None = None
    think: bool | str | None = None
    tools: list[Json] | None = None
    format: str | Json | None = None
    options: Json | None = None
    keep_alive: float | str | None = None

    def chat(self, messages: list[Json]) -> ChatRequest:
        """The same request in OpenAI's words."""
        body: Json = {"messages": messages, "stream": self.stream is not False}
        for theirs, ours in _SHUT.items():
            value = (self.options or {}).get(theirs)
            if value is not None and not (theirs == "num_predict" and value < 1):  # -1: no limit
                body[ours] = value
        if self.think is not None:
            body["chat_template_kwargs"] = {"enable_thinking": bool(self.think)}
        if self.tools:
            body["tools"] = self.tools
        if self.format == "json":
            body["response_format"] = {"type": "json_object"}
        elif isinstance(self.format, dict):
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": self.format}}
        return ChatRequest.model_validate(body)


async def chat(sim: Simulation, request: Request) -> Response:
    """`POST /api/chat`. Raises VllmError."""
    body = _parse(request)
    name = _served(sim, body.model)
    if not body.messages:
        return _loaded(name, body, "chat")
    messages = [{**message, "tool_calls": _calls(message.get("tool_calls"))} for message in body.messages]
    return _answer(sim, request, body, name, messages, "chat")


async def generate_text(sim: Simulation, request: Request) -> Response:
    """`POST /api/generate`. Raises VllmError."""
    body = _parse(request)
    name = _served(sim, body.model)
    if not body.prompt:
        return _loaded(name, body, "generate")
    messages = [{"role": "system", "content": body.system}] if body.system else []
    return _answer(sim, request, body, name, [*messages, {"role": "user", "content": body.prompt}], "generate")


def _answer(sim: Simulation, request: Request, body: OllamaRequest, name: str, messages: list[Json], kind: str) -> Response:
    try:
        asked = body.chat(messages)
    except (ValidationError, TypeError) as error:
        raise OllamaError(f"invalid request: {str(error).splitlines()[0]}") from None
    got = received(request.scope)
    try:
        talk = generate.converse(sim, got.directives, asked)
        writer = OllamaWriter(name, kind, talk.prompt)
        return generate.respond(sim, got, asked, writer, talk.scripts, [len(talk.prompt)], talk.max_tokens)
    except VllmError as error:
        raise OllamaError(error.message, code=error.code) from None


async def embed(sim: Simulation, request: Request) -> Response:
    """`POST /api/embed`: one vector for each input. Raises VllmError."""
    body = _object(request)
    name, given = _served(sim, str(body.get("model", ""))), body.get("input", [])
    texts = [given] if isinstance(given, str) else list(given)
    count = sum(len(sim.tokenizer.encode(str(text))) for text in texts)
    out: Json = {"model": name, "embeddings": [vector(sim, str(text)) for text in texts]}
    out |= {"total_duration": 1_500_000, "load_duration": 500_000}
    if count:
        out["prompt_eval_count"] = count
    return _json(out)


async def embeddings(sim: Simulation, request: Request) -> Response:
    """`POST /api/embeddings`, of old: one vector and no counts. Raises VllmError."""
    body = _object(request)
    _served(sim, str(body.get("model", "")))
    return _json({"embedding": vector(sim, str(body.get("prompt", "")))})


async def tags(sim: Simulation, request: Request) -> Response:
    """`GET /api/tags`."""
    return _json({"models": [_card(name, sim) for name in sim.settings.models]})


async def ps(sim: Simulation, request: Request) -> Response:
    """`GET /api/ps`."""
    running = {"expires_at": _now(), "size_vram": 0, "context_length": sim.settings.max_model_len}
    cards = [_card(name, sim) for name in sim.settings.models]
    for card in cards:
        del card["modified_at"], card["capabilities"]
    return _json({"models": [{**card, **running} for card in cards]})


async def show(sim: Simulation, request: Request) -> Response:
    """`POST /api/show`. Raises VllmError."""
    body = _object(request)
    name = _served(sim, str(body.get("model") or body.get("name") or ""))
    card = _card(name, sim)
    info = {"general.architecture": "sim", "sim.context_length": sim.settings.max_model_len}
    return _json({"modelfile": "", "template": "", "details": card["details"], "model_info": info, **_CAPABLE})


async def version(sim: Simulation, request: Request) -> Response:
    """`GET /api/version`."""
    return _json({"version": VERSION})


_CAPABLE = {"capabilities": ["completion", "tools", "thinking", "embedding"]}


def _card(name: str, sim: Simulation) -> Json:
    full = name if ":" in name else f"{name}:latest"
    details: Json = {"parent_model": "", "format": "gguf", "family": "sim", "families": ["sim"], "parameter_size": "1.58M"}
    details |= {"quantization_level": "unknown", "context_length": sim.settings.max_model_len, "embedding_length": 64}
    digest = uuid.uuid5(uuid.NAMESPACE_URL, full).hex * 2
    card: Json = {"name": full, "model": full, "modified_at": _now(), "size": 6348468, "digest": digest, "details": details}
    return card | _CAPABLE


def _served(sim: Simulation, name: str) -> str:
    """The name as the client gave it, if it is served; no tag means `latest`. Raises OllamaError."""
    if not name:
        raise OllamaError("model is required")
    known = {n if ":" in n else f"{n}:latest" for n in sim.settings.models}
    if (name if ":" in name else f"{name}:latest") not in known:
        raise OllamaError(f"model '{name}' not found", code=404)
    return name


def _object(request: Request) -> Json:
    body = received(request.scope).body
    if not body:
        raise OllamaError("missing request body")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise OllamaError("invalid character looking for beginning of value") from None
    if not isinstance(value, dict):
        raise OllamaError("json: cannot unmarshal into Go value of type api.ChatRequest")
    return value


def _parse(request: Request) -> OllamaRequest:
    try:
        return OllamaRequest.model_validate(_object(request))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise OllamaError(f"json: cannot unmarshal into Go struct field {where}") from None


def _calls(calls: Any) -> list[Json] | None:
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else None


def _loaded(name: str, body: OllamaRequest, kind: str) -> Response:
    """Nothing to say: the model is loaded, or with `keep_alive: 0` unloaded."""
    said: Json = {"message": {"role": "assistant", "content": ""}} if kind == "chat" else {"response": ""}
    reason = "unload" if body.keep_alive == 0 else "load"
    return _json({"model": name, "created_at": _now(), **said, "done": True, "done_reason": reason})


def _json(data: Json) -> Response:
    return Response(orjson.dumps(data), media_type="application/json; charset=utf-8")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


class OllamaWriter:
    """`kind`: chat or generate."""

    media_type = b"application/x-ndjson"
    whole_type = b"application/json; charset=utf-8"
    end = b""

    def __init__(self, model: str, kind: str, prompt: Sequence[int], clock: Callable[[], int] = perf_counter_ns) -> None:
        self._model = model
        self._chat = kind == "chat"
        self._prompt = prompt
        self._clock = clock
        self._started = clock()
        self._first: int | None = None
        self._steps: list[Step] = []
        self._calls: list[Json] = []
        self._spoken = False

    def opening(self) -> list[bytes]:
        """Nothing: the first line is the first token."""
        return []

    def step(self, choice: int, step: Step) -> bytes | None:
        """A line for a piece of text or thinking, and one for each whole tool call."""
        if self._first is None:
            self._first = self._clock()
        self._steps.append(step)
        if step.channel == "tool_name":
            self._calls.append({"name": step.delta, "arguments": ""})
            return None
        if step.channel == "tool_args":
            return self._argument(step)
        text = step.delta
        if not self._spoken:
            text = text.lstrip("\n")  # Ollama trims what is around the thinking
        if step.channel == "control" or not text:
            return None
        self._spoken = True
        return self._line({"thinking": text} if step.channel == "reasoning" else {"content": text})

    def closing(self) -> list[bytes]:
        """The line with the counts."""
        return [self._last({})]

    def whole(self, scripts: Sequence[Sequence[Step]]) -> bytes:
        """The one object of a reply that is not streamed."""
        (steps,) = scripts
        for step in steps:
            self.step(0, step)
        said: Json = {"content": "".join(s.delta for s in steps if s.channel == "content").lstrip("\n")}
        thoughts = "".join(s.delta for s in steps if s.channel == "reasoning").strip("\n")
        if thoughts:
            said["thinking"] = thoughts
        if self._calls:
            said["tool_calls"] = [self._call(call, index) for index, call in enumerate(self._calls)]
        return self._last(said).removesuffix(b"\n")

    def failure(self) -> bytes:
        """An error in a line."""
        return orjson.dumps({"error": INTERNAL_MESSAGE}) + b"\n"

    def _argument(self, step: Step) -> bytes | None:
        call = self._calls[step.call]
        call["arguments"] += step.delta
        try:
            json.loads(call["arguments"])
        except ValueError:
            return None
        return self._line({"content": "", "tool_calls": [self._call(call, step.call)]})

    def _call(self, call: Json, index: int) -> Json:
        try:
            arguments = json.loads(call["arguments"])
        except ValueError:  # cut by num_predict
            arguments = {}
        call.setdefault("id", f"call_{uuid.uuid4().hex[:8]}")
        return {"id": call["id"], "function": {"index": index, "name": call["name"], "arguments": arguments}}

    def _object(self, said: Json) -> Json:
        if not self._chat:
            flat: Json = {"response": said.get("content", "")}
            return flat | {name: value for name, value in said.items() if name != "content"}
        return {"message": {"role": "assistant", "content": "", **said}}

    def _line(self, said: Json) -> bytes:
        return orjson.dumps({"model": self._model, "created_at": _now(), **self._object(said), "done": False}) + b"\n"

    def _last(self, said: Json) -> bytes:
        now = self._clock()
        first = self._first or now
        finish = self._steps[-1].finish if self._steps else None
        out: Json = {"model": self._model, "created_at": _now(), **self._object(said), "done": True}
        out["done_reason"] = "length" if finish == "length" else "stop"
        if not self._chat:
            out["context"] = [*self._prompt, *(step.token for step in self._steps)]
        counts = {
            "total_duration": now - self._started,
            "load_duration": 1_000_000,
            "prompt_eval_count": len(self._prompt),
            "prompt_eval_duration": first - self._started,
            "eval_count": len(self._steps),
            "eval_duration": now - first,
        }
        return orjson.dumps(out | {name: value for name, value in counts.items() if value}) + b"\n"
