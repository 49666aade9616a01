"""Requests and replies of every API as one list of messages in OpenAI's shape, so that they meet in one chain.

Chat and completions (OpenAI), Messages (Anthropic), Responses (OpenAI), chat and generate (Ollama). What has no such
reading (embeddings, audio, rerank …) keeps its parameters, not its payload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Obj = dict[str, Any]


@dataclass(slots=True)
class Prompt:
    """A request taken apart: messages (None: not readable as any), tool definitions, and every other parameter."""

    messages: list[Message] | None
    tools: list[Any] | None = None
    params: Obj = field(default_factory=dict)


#: what carries input rather than settings in requests that are not conversations
_PAYLOAD = frozenset(
    "messages prompt input inputs text text_1 text_2 texts documents query queries tokens data data_1 data_2 images file".split()
)


def dialect(endpoint: str | None, path: str | None) -> str | None:
    """How a request is to be read: an endpoint's name, Ollama's own paths included. None: keep no payload."""
    if endpoint in _READERS:
        return endpoint
    for end, name in (("/api/chat", "ollama_chat"), ("/api/generate", "ollama_generate")):
        if path is not None and path.endswith(end):
            return name
    return None


def from_request(kind: str | None, request: Obj) -> Prompt:
    """The messages of a request body. `kind` is what `dialect` says. Never raises for what a client may send."""
    if kind is None:
        return Prompt(None, None, {k: v for k, v in request.items() if k not in _PAYLOAD})
    reader, taken = _READERS[kind]
    messages = reader(request)
    if messages is None or not all(type(m) is dict for m in messages):
        return Prompt(None, None, request)  # an error answer is coming: keep what was sent as it is
    tools = request.get("tools")
    tools = tools if type(tools) is list and tools else None
    left_out = taken | {"tools"} if tools is not None else taken
    return Prompt(messages, tools, {k: v for k, v in request.items() if k not in left_out})


def from_choice(choice: Obj) -> Message | None:
    """The assistant message of one choice of a reply (a `Choice` record). None when the model said nothing at all."""
    calls = [
        _tool_call(call.get("id"), call.get("name"), call.get("arguments", ""), call.get("type") or "function")
        for call in choice.get("tool_calls") or []
        if type(call) is dict
    ]
    message = {
        "role": choice.get("role") or "assistant",
        "content": choice.get("content"),
        "tool_calls": calls,
        "reasoning": choice.get("reasoning"),
        "refusal": choice.get("refusal"),
    }
    said = any(message[key] for key in ("content", "tool_calls", "reasoning", "refusal"))
    return message if said or choice.get("finish_reason") else None


def _chat(request: Obj) -> list[Message] | None:
    messages = request.get("messages")
    return messages if type(messages) is list else None


def _completions(request: Obj) -> list[Message] | None:
    """A prompt is one `user` message: a string, several strings, token ids, or several lists of them."""
    match request.get("prompt"):
        case str(text):
            content: Any = text
        case [*prompts] if prompts and all(type(p) is int for p in prompts):
            content = [_token_ids(prompts)]
        case [*prompts] if prompts and all(type(p) is str or type(p) is list for p in prompts):
            content = [{"type": "text", "text": p} if type(p) is str else _token_ids(p) for p in prompts]
        case _:
            return None
    return [{"role": "user", "content": content}]


def _token_ids(ids: list[Any]) -> Obj:
    return {"type": "token_ids", "token_ids": ids}


def _ollama_generate(request: Obj) -> list[Message] | None:
    prompt = request.get("prompt")
    if type(prompt) is not str or not prompt:
        return None  # loads or unloads a model
    system = request.get("system")
    out: list[Message] = [{"role": "system", "content": system}] if type(system) is str and system else []
    return [*out, _with_images({"role": "user", "content": prompt, "images": request.get("images")})]


def _ollama_chat(request: Obj) -> list[Message] | None:
    messages = _chat(request)
    if messages is None or not all(type(m) is dict for m in messages):
        return None
    return [_with_images(m) for m in messages]


def _with_images(message: Message) -> Message:
    """Ollama's `images` as content parts (they are part of what was said), its other fields under their common names."""
    names = {"thinking": "reasoning", "tool_name": "name"}
    out = {names.get(k, k): v for k, v in message.items() if k != "images"}
    if images := message.get("images"):
        pictures = images if type(images) is list else [images]
        out["content"] = [{"type": "text", "text": out.get("content") or ""}, *({"type": "image", "data": i} for i in pictures)]
    return out


def _anthropic(request: Obj) -> list[Message] | None:
    messages = _chat(request)
    if messages is None:
        return None
    out: list[Message] = []
    if system := request.get("system"):
        out.append({"role": "system", "content": system})
    for message in messages:
        if type(message) is not dict:
            return None
        content = message.get("content")
        out.extend(_blocks(message, content) if type(content) is list else [message])
    return out


def _blocks(message: Message, blocks: list[Any]) -> list[Message]:
    """A message of content blocks: tool results become `tool` messages of their own, tool uses `tool_calls`."""
    results: list[Message] = []
    calls: list[Obj] = []
    thoughts: list[str] = []
    rest: list[Any] = []
    for block in blocks:
        kind = block.get("type") if type(block) is dict else None
        if kind == "tool_result":
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": block.get("content")})
        elif kind == "tool_use":
            calls.append(_tool_call(block.get("id"), block.get("name"), block.get("input")))
        elif kind in ("thinking", "redacted_thinking"):
            thoughts.append(str(block.get("thinking") or ""))
        else:
            rest.append(block)
    role = message.get("role")
    if role == "assistant" and all(type(b) is dict and b.get("type") == "text" and type(b.get("text")) is str for b in rest):
        content: Any = "".join(b["text"] for b in rest)  # a reply's blocks are kept as one text
    else:
        content = rest
    if content or calls or not results:
        results.append({**message, "content": content, "tool_calls": calls, "reasoning": "".join(thoughts)})
    return results


def _responses(request: Obj) -> list[Message] | None:
    out: list[Message] = []
    instructions = request.get("instructions")
    if type(instructions) is str and instructions:
        out.append({"role": "system", "content": instructions})
    given = request.get("input")
    if type(given) is str:
        return [*out, {"role": "user", "content": given}]
    if type(given) is not list:
        return None
    for item in given:
        if type(item) is not dict:
            return None
        _response_item(item, out)
    return out


def _response_item(item: Obj, out: list[Message]) -> None:
    """One input item. The items of one reply (text, function calls) are one assistant message, as the reply itself was stored."""
    kind = item.get("type", "message")
    last = out[-1] if out and out[-1].get("role") == "assistant" else None
    if kind == "message":
        content = item.get("content")
        if item.get("role") == "assistant" and type(content) is list:
            content = "".join(p["text"] for p in content if type(p) is dict and type(p.get("text")) is str)
        out.append({"role": item.get("role"), "content": content})
    elif kind == "function_call":
        call = _tool_call(item.get("call_id"), item.get("name"), item.get("arguments"))
        if last is None:
            out.append({"role": "assistant", "tool_calls": [call]})
        else:
            last["tool_calls"] = [*last.get("tool_calls", ()), call]
    elif kind == "function_call_output":
        out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind != "reasoning":  # never sent by the model as part of what it said
        out.append({"role": "user", "content": [item]})


def _tool_call(ident: Any, name: Any, arguments: Any, kind: str = "function") -> Obj:
    return {"id": ident, "type": kind, "function": {"name": name, "arguments": arguments}}


_READERS: dict[str, tuple[Callable[[Obj], list[Message] | None], frozenset[str]]] = {
    "chat": (_chat, frozenset({"messages"})),
    "completions": (_completions, frozenset({"prompt"})),
    "messages": (_anthropic, frozenset({"messages", "system"})),
    "responses": (_responses, frozenset({"input", "instructions"})),
    "ollama_chat": (_ollama_chat, frozenset({"messages"})),
    "ollama_generate": (_ollama_generate, frozenset({"prompt", "system", "images"})),
}
