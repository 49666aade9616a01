"""One reply in the other form: a whole chat or text completion as a stream of events, and a stream as a whole.

Text, reasoning, tool calls, logprobs, finish reasons and usage come out the same. What cannot be said in the other form, or
is not known here, gives None: better to ask again than to lose it.
"""

from __future__ import annotations

from typing import Any

import orjson

from llmtap.core.errors import WireError
from llmtap.wire.jsonload import load_object
from llmtap.wire.sse import SseDecoder

_HEAD = ("id", "created", "model", "system_fingerprint", "service_tier")
_WHOLE = frozenset((*_HEAD, "object", "choices", "usage"))
_CHOICE = frozenset(("index", "message", "text", "finish_reason", "stop_reason", "logprobs", "token_ids", "delta"))
_MESSAGE = frozenset(("role", "content", "reasoning", "reasoning_content", "refusal", "tool_calls"))
_TEXTS = ("reasoning", "reasoning_content", "content", "refusal")
_OBJECTS = {"chat": ("chat.completion", "chat.completion.chunk"), "completions": ("text_completion", "text_completion")}
_DONE = b"data: [DONE]\n\n"


class _Unknown(Exception):
    """Something that has no place in the other form."""


def to_stream(endpoint: str, body: bytes) -> bytes | None:
    """The events of a whole reply, the usage event among them. None where that cannot be done."""
    try:
        whole = load_object(body)
        _known(whole, _WHOLE)
        head = {name: whole[name] for name in _HEAD if name in whole} | {"object": _OBJECTS[endpoint][1]}
        out = []
        for choice in whole["choices"]:
            _known(choice, _CHOICE)
            for part in _chat_parts(choice) if endpoint == "chat" else [_text_part(choice)]:
                out.append(_event({**head, "choices": [part]}))
        if whole.get("usage") is not None:
            out.append(_event({**head, "choices": [], "usage": whole["usage"]}))
        return b"".join(out) + _DONE
    except (WireError, _Unknown, KeyError, TypeError, AttributeError):
        return None


def to_whole(endpoint: str, stream: bytes) -> bytes | None:
    """The whole reply a stream amounts to. None where that cannot be done, or the stream is not complete."""
    try:
        decoder = SseDecoder()
        events = [*decoder.feed(stream), *decoder.close()]
        if not events or events[-1].data.strip() != b"[DONE]":
            return None
        whole: dict[str, Any] = {}
        choices: dict[int, dict[str, Any]] = {}
        usage = None
        for event in events[:-1]:
            chunk = load_object(event.data)
            _known(chunk, _WHOLE)
            whole.update({name: chunk[name] for name in _HEAD if chunk.get(name) is not None})
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                _known(choice, _CHOICE)
                _merge(endpoint, choices.setdefault(choice["index"], {"index": choice["index"]}), choice)
        if not choices or any(choice.get("finish_reason") is None for choice in choices.values()):
            return None
        whole = {"object": _OBJECTS[endpoint][0], **whole, "choices": [choices[n] for n in sorted(choices)], "usage": usage}
        return orjson.dumps(whole)
    except (WireError, _Unknown, KeyError, TypeError, AttributeError):
        return None


def _known(obj: dict[str, Any], names: frozenset[str]) -> None:
    """Members that say something must be known."""
    if not names.issuperset(obj) and any(obj[name] not in (None, [], {}) for name in obj.keys() - names):
        raise _Unknown


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _chat_parts(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """The role, then each kind of content, then the end."""
    message = choice["message"]
    _known(message, _MESSAGE)
    index = choice["index"]

    def part(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": None, **more}

    parts = [part({"role": message.get("role") or "assistant", "content": ""})]
    content = {name: message[name] for name in _TEXTS if message.get(name)}
    rest = {name: choice[name] for name in ("logprobs", "token_ids") if choice.get(name) is not None}
    for name, text in content.items():
        parts.append(part({name: text}, **(rest if name == "content" else {})))
    if rest and "content" not in content:
        parts.append(part({"content": ""}, **rest))
    for at, call in enumerate(message.get("tool_calls") or ()):
        parts.append(part({"tool_calls": [{"index": at, **call}]}))
    end = part({})
    parts.append({**end, "finish_reason": choice["finish_reason"], "stop_reason": choice.get("stop_reason")})
    return parts


def _text_part(choice: dict[str, Any]) -> dict[str, Any]:
    if type(choice["text"]) is not str:
        raise _Unknown
    return choice


def _merge(endpoint: str, into: dict[str, Any], choice: dict[str, Any]) -> None:
    """One event's part of a choice into what there is of it."""
    for name in ("finish_reason", "stop_reason"):
        if choice.get(name) is not None or name not in into:
            into[name] = choice.get(name)
    if choice.get("token_ids") is not None:
        into["token_ids"] = [*into.get("token_ids", ()), *choice["token_ids"]]
    if choice.get("logprobs") is not None:
        kept = into.get("logprobs") or {}
        into["logprobs"] = kept | {k: [*kept.get(k, ()), *v] for k, v in choice["logprobs"].items() if v is not None}
    if endpoint == "completions":
        into["text"] = into.get("text", "") + choice["text"]
        return
    delta = choice["delta"]
    _known(delta, _MESSAGE)
    message = into.setdefault("message", {"role": "assistant", "content": None})
    if delta.get("role"):
        message["role"] = delta["role"]
    for name in _TEXTS:
        if delta.get(name):
            message[name] = (message.get(name) or "") + delta[name]
        elif name == "content" and delta.get(name) == "" and message["content"] is None and not delta.get("role"):
            message["content"] = ""
    for call in delta.get("tool_calls") or ():
        _merge_call(message.setdefault("tool_calls", []), call)


def _merge_call(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    at = call["index"]
    if at == len(calls):
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    elif not 0 <= at < len(calls):
        raise _Unknown
    known = calls[at]
    for name in ("id", "type"):
        if call.get(name):
            known[name] = call[name]
    function = call.get("function") or {}
    known["function"]["name"] += function.get("name") or ""
    known["function"]["arguments"] += function.get("arguments") or ""
