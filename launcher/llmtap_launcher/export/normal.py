"""Stored messages of every API in the one shape that trainers read: OpenAI's chat messages, four roles, text and pictures.

What has no place there raises Unfit with a reason in words, and the conversation is left out and counted.
"""

from __future__ import annotations

from typing import Any

import orjson

from llmtap.wire.values import json_text
from llmtap_launcher.export.options import Message, Shape
from llmtap_launcher.export.pictures import Pictures

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool", "function": "tool"}
_TEXTS = frozenset({"text", "input_text", "output_text"})
_PICTURES = frozenset({"image_url", "input_image", "image"})


class Unfit(Exception):
    """A conversation that cannot be exported in this shape; the text says why, in words that are counted."""


def normal(stored: Message, body: int, shape: Shape, pictures: Pictures) -> Message:
    """A stored message (`canonical.message_of`) of the body with this id, as a trainer reads it. Raises Unfit."""
    role = ROLES.get(stored["role"])
    if role is None:
        raise Unfit(f"messages of the role {stored['role']!r}")
    content = stored.get("content")
    if type(content) is list:
        content = _parts(content, role, body, shape, pictures)
    elif content is not None and type(content) is not str:
        content = json_text(content)
    out: Message = {"role": role, "content": content}
    if role == "assistant":
        _reply(stored, out, shape)
    elif content is None:
        out["content"] = ""
    if role == "tool":
        if type(ident := stored.get("tool_call_id")) is str:
            out["tool_call_id"] = ident
    elif type(name := stored.get("name")) is str and name:
        out["name"] = name
    return out


def thoughts(stored: Message) -> str | None:
    """The reasoning of a stored reply, under whichever name it came."""
    for name in ("reasoning", "reasoning_content", "thinking"):
        if type(text := stored.get(name)) is str and text:
            return text
    return None


def think(message: Message, reasoning: str | None, shape: Shape) -> None:
    """Puts reasoning into a normal reply, as the shape has it."""
    if not reasoning or shape.reasoning == "drop":
        return
    if shape.reasoning == "keep":
        message["reasoning_content"] = reasoning
    elif type(message["content"]) is not list:
        message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content'] or ''}"


def link_calls(messages: list[Message]) -> None:
    """Gives calls without an id one, and tool messages without one that of the call they answer, in their order."""
    made, waiting = 0, list[str]()
    for message in messages:
        if calls := message.get("tool_calls"):
            waiting = []
            for call in calls:
                if not call["id"]:
                    made += 1
                    call["id"] = f"call_{made}"
                waiting.append(call["id"])
        elif message["role"] == "tool":
            if "tool_call_id" not in message:
                message["tool_call_id"] = waiting[0] if waiting else "call_0"
            if message["tool_call_id"] in waiting:
                waiting.remove(message["tool_call_id"])


def tools_of(stored: list[Any]) -> list[Message]:
    """Tool definitions of every API in OpenAI's shape; what is no function (a search of the server's own) is left out."""
    out = []
    for tool in stored:
        if type(tool) is not dict:
            continue
        function = tool.get("function")
        if type(function) is dict:
            out.append({"type": "function", "function": function})
        elif type(tool.get("name")) is str and tool.get("type", "function") in ("function", "custom"):
            parameters = tool.get("parameters", tool.get("input_schema"))
            keys = ("name", "description", "strict")
            flat = {key: tool[key] for key in keys if tool.get(key) is not None}
            out.append({"type": "function", "function": flat | ({"parameters": parameters} if parameters is not None else {})})
    return out


def _reply(stored: Message, out: Message, shape: Shape) -> None:
    calls = stored.get("tool_calls")
    legacy = stored.get("function_call")
    if not calls and type(legacy) is dict:
        calls = [{"function": legacy}]
    if type(calls) is list and calls:
        out["tool_calls"] = [_call(call, shape) for call in calls]
        out["content"] = out["content"] or None
    elif not out["content"]:
        refusal = stored.get("refusal")
        out["content"] = refusal if type(refusal) is str else ""
    think(out, thoughts(stored), shape)


def _call(call: Any, shape: Shape) -> Message:
    function = call.get("function") if type(call) is dict else None
    if type(function) is not dict or type(name := function.get("name")) is not str:
        raise Unfit("calls of tools that are no functions")
    arguments = json_text(function.get("arguments")) or "{}"
    ident = call.get("id")
    given: Any = arguments
    if shape.tool_args == "object":
        try:
            given = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            given = None
        if type(given) is not dict:
            raise Unfit("tool arguments that are no JSON object")
    return {"id": ident if type(ident) is str else "", "type": "function", "function": {"name": name, "arguments": given}}


def _parts(parts: list[Any], role: str, body: int, shape: Shape, pictures: Pictures) -> str | list[Message]:
    out: list[Message] = []
    for part in parts:
        if type(part) is str:
            out.append({"type": "text", "text": part})
            continue
        kind = part.get("type") if type(part) is dict else None
        if kind in _TEXTS:
            out.append({"type": "text", "text": str(part.get("text") or "")})
        elif kind == "refusal":
            out.append({"type": "text", "text": str(part.get("refusal") or "")})
        elif kind in _PICTURES:
            if shape.images == "drop":
                continue
            if shape.images == "skip":
                raise Unfit("pictures")
            if role != "user":
                raise Unfit("pictures that are not the user's")
            out.append(_picture(part, body, pictures))
        else:
            raise Unfit({"token_ids": "prompts of token ids", "input_audio": "audio"}.get(str(kind), f"content of type {kind}"))
    if all(part["type"] == "text" for part in out):
        return "\n".join(part["text"] for part in out)  # as vLLM does for templates that know texts only
    return out


def _picture(part: Message, body: int, pictures: Pictures) -> Message:
    """A picture as OpenAI (two APIs), Anthropic and Ollama write it."""
    inner, source = part.get("image_url"), part.get("source")
    detail, mime = part.get("detail"), None
    if type(inner) is dict:
        value, detail = inner.get("url"), inner.get("detail")
    elif type(inner) is str:
        value = inner
    elif type(source) is dict:
        value, mime = source.get("data") or source.get("url"), source.get("media_type")
    else:
        value = part.get("data")
    url = pictures.url(value, body, mime) if type(value) is str else None
    if url is None:
        raise Unfit("pictures that are no longer stored, or only by reference")
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if type(detail) is str else {})}
