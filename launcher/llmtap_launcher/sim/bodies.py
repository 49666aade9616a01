"""The JSON of chat and text completions: vLLM 0.33's fields, in its order, with its nulls.

Every generating endpoint has a writer (the others: `responses`, `messages`, `ollama`, `audio`), with the same methods.
`opening` and `step` make the events of a stream (each is one HTTP chunk), `closing` its last ones, and `whole` the body of a
reply that is not streamed. Compared with recordings by the tests.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from . import logprobs
from .errors import internal_error
from .requests import ChatRequest, CompletionRequest
from .script import Step
from .text import Tokenizer

VERSION = "0.33.0"
FINGERPRINT = f"vllm-{VERSION}-60b0c9de"
DONE = b"data: [DONE]\n\n"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
JSON = b"application/json"

Json = dict[str, Any]


def event(data: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def named_event(data: Json) -> bytes:
    """One server-sent event with a name, its `type`."""
    return b"event: " + str(data["type"]).encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk and body of one answer begins with."""

    id: str
    created: int
    model: str

    def head(self, kind: str) -> Json:
        """`{"id", "object", "created", "model"}`."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Writer(Protocol):
    """Turns steps into the bytes of an answer."""

    media_type: bytes  # of a stream
    whole_type: bytes  # of a body
    end: bytes  # what a stream says last, b"" when it just ends

    def opening(self) -> list[bytes]:
        """Events before the first token."""

    def step(self, choice: int, step: Step) -> bytes | None:
        """The event of one token, if it makes one."""

    def closing(self) -> list[bytes]:
        """Events after the last token, `[DONE]` not included."""

    def whole(self, scripts: Sequence[Sequence[Step]]) -> bytes:
        """The body of a reply that is not streamed."""

    def failure(self) -> bytes | None:
        """The event that tells of the engine's death; None when the stream is just cut."""


class ChatWriter:
    """`/v1/chat/completions`. `reasoning`: a reasoning parser is at work, so usage tells reasoning tokens."""

    media_type = EVENT_STREAM
    whole_type = JSON
    end = DONE

    def __init__(
        self,
        request: ChatRequest,
        envelope: Envelope,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        reasoning: bool,
        forced_name: bool,
    ) -> None:
        self._request = request
        self._envelope = envelope
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._reasoning = reasoning
        self._forced_name = forced_name
        self._counts = [0] * request.choices
        self._thoughts = [0] * request.choices
        self._called = [False] * request.choices
        self._head = envelope.head("chat.completion.chunk")

    def opening(self) -> list[bytes]:
        """A role chunk for each choice; they go out with the engine's first token, not before."""
        events = []
        for index in range(self._request.choices):
            choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            chunk = {**self._head, "choices": [choice]}
            if self._request.continuous_usage:
                chunk["usage"] = self._usage(0, 0, stream=True)
            chunk["prompt_token_ids"] = list(self._prompt) if self._request.return_token_ids else None
            chunk["prompt_text"] = None
            events.append(event(chunk))
        return events

    def step(self, choice: int, step: Step) -> bytes | None:
        """A delta. Control tokens make one (an empty one) only if ids or probabilities were asked for."""
        request = self._request
        self._counts[choice] += 1
        if step.channel == "reasoning":
            self._thoughts[choice] += 1
        delta = self._delta(choice, step)
        if not delta and not step.finish and not request.return_token_ids and not request.logprobs:
            return None
        body: Json = {
            "index": choice,
            "delta": delta,
            "logprobs": self._logprobs(step, self._counts[choice]),
            "finish_reason": self._finish(choice, step),
        }
        if step.finish:
            body["stop_reason"] = step.stop_reason
        body["token_ids"] = [step.token] if request.return_token_ids else None
        if step.finish:
            body["weight_versions"] = None
        chunk = {**self._head, "choices": [body]}
        if request.continuous_usage:
            chunk["usage"] = self._usage(self._counts[choice], self._thoughts[choice], stream=True)
        if step.finish and not request.include_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        chunk["kv_transfer_params"] = None
        return event(chunk)

    def closing(self) -> list[bytes]:
        """The usage chunk, if asked for."""
        if not self._request.include_usage:
            return []
        usage = self._usage(sum(self._counts), sum(self._thoughts), stream=True)
        return [event({**self._head, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT})]

    def whole(self, scripts: Sequence[Sequence[Step]]) -> bytes:
        """The `chat.completion` object."""
        request = self._request
        choices = []
        for index, steps in enumerate(scripts):
            for step in steps:
                self._counts[index] += 1
                self._thoughts[index] += step.channel == "reasoning"
            message = self._message(index, steps)
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._all_logprobs(steps),
                    "finish_reason": self._finish(index, steps[-1]),
                    "stop_reason": steps[-1].stop_reason,
                    "token_ids": [s.token for s in steps] if request.return_token_ids else None,
                    "routed_experts": None,
                    "weight_versions": None,
                }
            )
        prompt_logprobs = None
        if request.prompt_logprobs is not None:
            prompt_logprobs = logprobs.prompt_entries(self._tokenizer, self._prompt, request.prompt_logprobs)
        return orjson.dumps(
            {
                **self._envelope.head("chat.completion"),
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": self._usage(sum(self._counts), sum(self._thoughts), stream=False),
                "prompt_logprobs": prompt_logprobs,
                "prompt_token_ids": list(self._prompt) if request.return_token_ids else None,
                "prompt_text": None,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def failure(self) -> bytes:
        """vLLM's error event; compact here, spaced in text completions."""
        return b"data: " + internal_error().body() + b"\n\n"

    def _delta(self, choice: int, step: Step) -> Json:
        if step.channel == "tool_name":
            self._called[choice] = True
            head = {"id": _tool_id(), "type": "function", "index": step.call, "function": {"name": step.delta}}
            return {"content": None, "tool_calls": [head]}
        if step.channel == "tool_args":
            if not step.delta:
                return {}
            return {"content": None, "tool_calls": [{"index": step.call, "function": {"arguments": step.delta}}]}
        return {step.channel: step.delta} if step.delta else {}

    def _message(self, index: int, steps: Sequence[Step]) -> Json:
        content = "".join(s.delta for s in steps if s.channel == "content")
        thoughts = "".join(s.delta for s in steps if s.channel == "reasoning")
        calls: list[Json] = []
        for step in steps:
            if step.channel == "tool_name":
                self._called[index] = True
                calls.append({"id": _tool_id(), "type": "function", "function": {"name": step.delta, "arguments": ""}})
            elif step.channel == "tool_args":
                calls[step.call]["function"]["arguments"] += step.delta
        if calls and not content.strip():
            content = ""
        message: Json = {"role": "assistant", "content": content or None}
        message |= {"refusal": None, "annotations": None, "audio": None, "function_call": None}
        if calls:
            message["tool_calls"] = calls
        message["reasoning"] = thoughts or None
        return message

    def _finish(self, choice: int, step: Step) -> str | None:
        # a tool forced by name ends as any answer does
        if step.finish == "stop" and self._called[choice] and not self._forced_name:
            return "tool_calls"
        return step.finish

    def _logprobs(self, step: Step, position: int) -> Json | None:
        if not self._request.logprobs:
            return None
        return {"content": [logprobs.chat_entry(self._tokenizer, step.token, position, self._request.top_logprobs or 0)]}

    def _all_logprobs(self, steps: Sequence[Step]) -> Json | None:
        if not self._request.logprobs:
            return None
        top = self._request.top_logprobs or 0
        return {"content": [logprobs.chat_entry(self._tokenizer, s.token, n, top) for n, s in enumerate(steps, 1)]}

    def _usage(self, completion: int, thoughts: int, *, stream: bool) -> Json:
        usage: Json = _usage(len(self._prompt), completion)
        if not stream:
            usage["prompt_tokens_details"] = None
        if self._reasoning:
            usage["completion_tokens_details"] = {"reasoning_tokens": thoughts}
        elif not stream:
            usage["completion_tokens_details"] = None
        return usage


class CompletionWriter:
    """`/v1/completions`. Choices are numbered through all prompts: index = choice + prompt x n."""

    media_type = EVENT_STREAM
    whole_type = JSON
    end = DONE

    def __init__(
        self, request: CompletionRequest, envelope: Envelope, tokenizer: Tokenizer, prompts: Sequence[tuple[str, Sequence[int]]]
    ) -> None:
        self._request = request
        self._envelope = envelope
        self._tokenizer = tokenizer
        self._prompts = [prompt for prompt in prompts for _ in range(request.choices)]
        self._prompt_tokens = sum(len(tokens) for _, tokens in prompts)
        self._counts = [0] * len(self._prompts)
        self._offsets = [0] * len(self._prompts)
        self._head = envelope.head("text_completion")

    def opening(self) -> list[bytes]:
        """Nothing: text completions have no role."""
        return []

    def step(self, choice: int, step: Step) -> bytes | None:
        """A piece of text; every token makes one, the first carries the prompt if it is to be echoed."""
        request = self._request
        prompt_text, prompt_tokens = self._prompts[choice]
        first = not self._counts[choice]
        self._counts[choice] += 1
        text, tokens = step.delta, [step.token]
        echoed = bool(first and request.echo)
        if echoed:
            text, tokens = prompt_text + text, [*prompt_tokens, *tokens]
        body = {
            "index": choice,
            "text": text,
            "logprobs": self._logprobs(choice, tokens, echoed),
            "finish_reason": step.finish,
            "stop_reason": step.stop_reason,
            "prompt_token_ids": list(prompt_tokens) if first and (request.return_token_ids or request.echo) else None,
            "token_ids": [step.token] if request.return_token_ids else None,
            "weight_versions": None,
        }
        chunk = {**self._head, "choices": [body]}
        if request.continuous_usage:
            chunk["usage"] = _usage(len(prompt_tokens), self._counts[choice])
        if step.finish and not request.include_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        chunk["kv_transfer_params"] = None
        return event(chunk)

    def closing(self) -> list[bytes]:
        """The usage chunk, if asked for."""
        if not self._request.include_usage:
            return []
        usage = _usage(self._prompt_tokens, sum(self._counts))
        return [event({**self._head, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT})]

    def whole(self, scripts: Sequence[Sequence[Step]]) -> bytes:
        """The `text_completion` object."""
        request = self._request
        choices = []
        for index, steps in enumerate(scripts):
            prompt_text, prompt_tokens = self._prompts[index]
            text, tokens = "".join(s.delta for s in steps), [s.token for s in steps]
            shown = tokens if not request.echo else [*prompt_tokens, *tokens]
            prompt_logprobs = None
            if request.prompt_logprobs is not None or (request.echo and request.logprobs is not None):
                top = request.prompt_logprobs if request.prompt_logprobs is not None else request.logprobs or 0
                prompt_logprobs = logprobs.prompt_entries(self._tokenizer, prompt_tokens, top)
            choices.append(
                {
                    "index": index,
                    "text": prompt_text + text if request.echo else text,
                    "logprobs": self._logprobs(index, shown, bool(request.echo)),
                    "finish_reason": steps[-1].finish,
                    "stop_reason": steps[-1].stop_reason,
                    "token_ids": tokens if request.return_token_ids else None,
                    "prompt_logprobs": prompt_logprobs,
                    "prompt_token_ids": list(prompt_tokens) if request.return_token_ids else None,
                    "routed_experts": None,
                    "weight_versions": None,
                }
            )
        usage = _usage(self._prompt_tokens, sum(map(len, scripts)))
        return orjson.dumps(
            {
                **self._envelope.head("text_completion"),
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": {**usage, "prompt_tokens_details": None, "completion_tokens_details": None},
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def failure(self) -> bytes:
        """vLLM's error event; spaced here, compact in chat."""
        return b"data: " + json.dumps(internal_error().object()).encode() + b"\n\n"

    def _logprobs(self, choice: int, tokens: Sequence[int], prompt: bool) -> Json | None:
        if self._request.logprobs is None:
            return None
        block = logprobs.completion_block(
            self._tokenizer, tokens, self._counts[choice], self._request.logprobs, self._offsets[choice], prompt
        )
        self._offsets[choice] += sum(map(len, block["tokens"]))
        return block


def _usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _tool_id() -> str:
    return f"chatcmpl-tool-{uuid.uuid4().hex[:16]}"
