"""Request bodies as vLLM 0.33 reads them, and its reasons to refuse one.

The models name the fields that shape an answer; any other field is accepted and ignored, as vLLM accepts the sampling parameters
it has no use for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import VllmError, bad_parameter, unparsable_body, unsupported_media_type, validation_error

Json = dict[str, Any]
#: errors come in the order of vLLM's fields; what is not named here keeps its place after them
_ERROR_ORDER = ("messages", "model", "prompt", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "n")


class StreamOptions(BaseModel):
    """`stream_options`: whether the stream tells its token counts, at the end or on every chunk."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Generate(BaseModel):
    """What chat and text completions have in common. `None` is what a client may send for "not set"."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    ignore_eos: bool | None = False
    min_tokens: int | None = 0
    include_stop_str_in_output: bool | None = False
    return_token_ids: bool | None = False
    prompt_logprobs: int | None = None

    @property
    def choices(self) -> int:
        """How many answers to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, none of them empty."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in given if s)

    @property
    def include_usage(self) -> bool:
        """Whether a last chunk tells the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk does; vLLM wants both flags for that."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class Message(BaseModel):
    """One turn. vLLM tells the roles apart by a union of models; here one model stands for all."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[Json] | None = None
    tool_calls: list[Json] | None = None


class Function(BaseModel):
    """A tool's function: its name and the JSON schema of its parameters."""

    model_config = ConfigDict(extra="allow")

    name: str
    description: str | None = None
    parameters: Json | None = None


class Tool(BaseModel):
    """One element of `tools`."""

    model_config = ConfigDict(extra="allow")

    type: str = "function"
    function: Function


class JsonSchema(BaseModel):
    """`response_format.json_schema`; the schema goes by `schema` on the wire."""

    json_schema: Json | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    """`response_format`: text, json_object or json_schema."""

    type: str
    json_schema: JsonSchema | None = None


class ChatRequest(Generate):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message]
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Json | None = None
    chat_template_kwargs: Json | None = None

    @property
    def forced_name(self) -> str | None:
        """The tool that must be called, if one is named."""
        return str(self.tool_choice["function"]["name"]) if isinstance(self.tool_choice, dict) else None


class BatchRequest(ChatRequest):
    """Body of `POST /v1/chat/completions/batch`: a list of conversations."""

    messages: list[list[Message]]  # type: ignore[assignment]


class CompletionRequest(Generate):
    """Body of `POST /v1/completions`."""

    prompt: list[int] | list[list[int]] | str | list[str] | None = None
    echo: bool | None = False
    logprobs: int | None = None
    max_tokens: int | None = 16


class TokenizeRequest(BaseModel):
    """Body of `POST /tokenize`: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    return_token_strs: bool | None = False
    add_generation_prompt: bool = True


class DetokenizeRequest(BaseModel):
    """Body of `POST /detokenize`."""

    model: str | None = None
    tokens: list[int]


def parse[T: BaseModel](model: type[T], content_type: str, body: bytes) -> T:
    """The validated body of a request. Raises VllmError."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise unsupported_media_type()
    if not body:
        raise validation_error([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        data = json.loads(body)
    except json.JSONDecodeError as error:
        raise validation_error(
            [
                {
                    "type": "json_invalid",
                    "loc": ("body", error.pos),
                    "msg": "JSON decode error",
                    "input": {},
                    "ctx": {"error": error.msg},
                }
            ]
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise unparsable_body() from None
    if b"\\ud" in body.lower():
        # half of a surrogate pair cannot be sent back as UTF-8: make a question mark of it
        data = json.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
    if isinstance(data, Mapping):
        _check_before(model, data)
    try:
        return model.model_validate(data, from_attributes=True)  # as FastAPI does; it shows in the words of an error
    except ValidationError as error:
        found: list[Json] = [{**e, "loc": _location(e["loc"])} for e in error.errors(include_url=False)]
        found.sort(key=lambda e: _rank(e["loc"]))
        raise validation_error(found) from None


def _rank(loc: tuple[int | str, ...]) -> int:
    field = loc[1] if len(loc) > 1 else ""
    return _ERROR_ORDER.index(field) if field in _ERROR_ORDER else len(_ERROR_ORDER)


def _location(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    # pydantic adds the names of a union's members ("list[int]"), which vLLM does not show for simple types
    return ("body", *(part for part in loc if isinstance(part, int) or (part.isidentifier() and part not in ("str", "int"))))


def _check_before(model: type[BaseModel], data: Mapping[str, Any]) -> None:
    """What vLLM checks before the types of the fields."""
    if not issubclass(model, Generate):
        if model is TokenizeRequest and "prompt" not in data and "messages" not in data:
            missing = [
                {"type": "missing", "loc": ("body", f), "msg": "Field required", "input": data} for f in ("prompt", "messages")
            ]
            raise validation_error(missing)
        return
    if data.get("stream_options") and not data.get("stream"):
        raise bad_parameter("Stream options can only be defined when `stream=True`.", "stream_options")
    if data.get("prompt_logprobs") is not None and data.get("stream"):
        raise bad_parameter("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
    if model is CompletionRequest and data.get("prompt") in (None, ""):
        raise bad_parameter("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if model is ChatRequest:
        if data.get("top_logprobs") and not data.get("logprobs"):
            raise bad_parameter("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        _check_tool_choice(data)


def _check_tool_choice(data: Mapping[str, Any]) -> None:
    choice, tools = data.get("tool_choice"), data.get("tools")
    if choice is None or choice == "none":
        return
    if not tools:
        raise bad_parameter("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if not isinstance(choice, dict):
        if choice not in ("auto", "required"):
            only = 'Only named tools, "none", "auto" or "required" are supported.'
            raise bad_parameter(f"Invalid value for `tool_choice`: {choice}! {only}", "tool_choice")
        return
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        usage = '`{"type": "function", "function": {"name": "my_function"}}`'
        message = f"Invalid value for `function`: `{function}` in `tool_choice`! Correct usage: {usage}"
        raise bad_parameter(message, "tool_choice.function")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    if not any(isinstance(f, dict) and f.get("name") == name for f in functions):
        raise bad_parameter("The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice")


def check_sampling(request: Generate, max_model_len: int, logprobs: int | None) -> None:
    """The values vLLM's engine refuses. Raises VllmError."""
    requested = request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        requested = request.max_completion_tokens
    if requested is not None and requested < 1:
        raise bad_parameter(f"max_tokens must be at least 1, got {requested}.", "max_tokens", requested)
    if requested is not None and requested > max_model_len:
        raise bad_parameter(
            f"max_tokens={requested} cannot be greater than max_model_len={max_model_len}. Please request fewer output tokens.",
            "max_tokens",
            requested,
        )
    if request.choices < 1:
        raise VllmError(f"n must be at least 1, got {request.choices}.")
    if request.temperature is not None and request.temperature < 0:
        raise bad_parameter(f"temperature must be non-negative, got {request.temperature}.", "temperature", request.temperature)
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise bad_parameter(f"top_p must be in (0, 1], got {request.top_p}.", "top_p", request.top_p)
    if logprobs is not None and logprobs > 20:
        raise bad_parameter(
            f"Requested sample logprobs of {logprobs}, which is greater than max allowed: 20", "logprobs", logprobs
        )
