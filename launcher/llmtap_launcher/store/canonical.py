"""What makes two messages the same: the canonical form that is hashed, and the row that is stored.

Only `{role, content, name, tool_calls, tool_call_id}` is hashed, nulls and empties left out: servers add null or extra
fields (`refusal`, `reasoning_content`, `index`) that clients never send back, and the chain of a conversation would not
link. Reasoning is outside the hash for the same reason, but kept in the row. Hashes are stored in databases: a change
here is a migration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from llmtap.wire.values import flatten
from llmtap_launcher.store.attachments import Attachment, lift

HASH_BYTES = 16
#: of hashes that only have to be rare
LOOSE_BYTES = 8
#: how far into a text its loose hash looks
_LOOSE_CHARS = 2000
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True, slots=True)
class Body:
    """One message as stored. `json` is the message in OpenAI's shape when that is more than `{role, content: str}`, without a
    `content` that is `text`; `attachments` are lifted out of it. `message_of` is the inverse."""

    hash: bytes
    role: str
    text: str | None
    json: str | None
    attachments: tuple[Attachment, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of text and JSON (UTF-8)."""
        return len((self.text or "").encode()) + len((self.json or "").encode())


def digest(data: bytes) -> bytes:
    """blake2b, 16 bytes: what every hash column holds."""
    return blake2b(data, digest_size=HASH_BYTES).digest()


def link(parent: bytes, body: bytes) -> bytes:
    """The hash of a message: of its parent's hash (b"" for the first) and its body's."""
    return digest(parent + body)


def asked_words(messages: Sequence[Body]) -> bytes:
    """What was asked, however its white space is set: half of `loose`. `messages`: all before the reply, at least one."""
    return digest(b"".join([b"%d " % len(messages), _words(messages[0]), _words(messages[-1])]))[:LOOSE_BYTES]


def loose(asked: bytes, reply: Body) -> bytes:
    """Names a reply to what `asked_words` names, for clients that trim what they send back."""
    return digest(asked + _words(reply))[:LOOSE_BYTES]


def _words(body: Body) -> bytes:
    if body.text is None:
        return body.hash
    words = "".join(body.text[:_LOOSE_CHARS].split())[: _LOOSE_CHARS // 2]  # so that a blank more shifts nothing out
    return digest(f"{body.role} {words}".encode("utf-8", "surrogatepass"))


def body_of(message: Mapping[str, Any]) -> Body:
    """The stored form of a message in OpenAI's shape. Raises TypeError for values that are not JSON."""
    role = message.get("role")
    role = role if type(role) is str and role else "user"
    content = _content(message.get("content"))
    canonical = {
        "role": role,
        "content": content,
        "name": message.get("name"),
        "tool_calls": _calls(message),
        "tool_call_id": message.get("tool_call_id"),
    }
    hashed = digest(orjson.dumps({k: v for k, v in canonical.items() if v not in _EMPTY}, option=orjson.OPT_SORT_KEYS))
    text = content if type(content) is str else flatten(content) or None
    whole = {k: v for k, v in message.items() if v not in _EMPTY}
    if type(content) is str and "content" in whole:
        whole["content"] = content  # one text part is a string with ceremony
    lifted: tuple[Attachment, ...] = ()
    if type(whole.get("content")) is list:
        whole["content"], lifted = lift(whole["content"])
    elif type(content) is str:
        whole.pop("content", None)  # it is the text: once is enough
    plain = whole.keys() <= {"role"}
    return Body(hashed, role, text, None if plain else orjson.dumps({**whole, "role": role}).decode(), lifted)


def message_of(role: str, text: str | None, json: str | None) -> dict[str, Any]:
    """A stored message in OpenAI's shape again: `role`, `content` (None where there is none), and what else it has.

    Attachments are still references (`attachments.restore` puts them back).
    """
    message: dict[str, Any] = orjson.loads(json) if json is not None else {"role": role}
    message.setdefault("content", text)
    return message


def tools_body(tools: list[Any]) -> Body:
    """The stored form of a request's tool definitions: role `tools`, their JSON as they came."""
    hashed = digest(orjson.dumps({"role": "tools", "tools": tools}, option=orjson.OPT_SORT_KEYS))
    return Body(hashed, "tools", None, orjson.dumps(tools).decode())


def _content(content: Any) -> Any:
    if type(content) is not list:
        return content
    # where a client puts its prompt-cache marks moves from turn to turn
    parts = [{k: v for k, v in p.items() if v is not None and k != "cache_control"} if type(p) is dict else p for p in content]
    match parts:
        case [str(text)] | [{"type": "text" | "input_text" | "output_text", "text": str(text)}]:
            return text
    return parts


def _calls(message: Mapping[str, Any]) -> list[Any]:
    calls = message.get("tool_calls")
    legacy = message.get("function_call")
    if not calls and type(legacy) is dict:
        calls = [{"function": legacy}]
    return [_call(call) for call in calls] if type(calls) is list else []


def _call(call: Any) -> Any:
    if type(call) is not dict:
        return call
    function = call.get("function")
    inner = function if type(function) is dict else call
    out = {
        "id": call.get("id"),
        "type": call.get("type", "function"),
        "name": inner.get("name"),
        "arguments": _arguments(inner.get("arguments", call.get("custom"))),
    }
    return {k: v for k, v in out.items() if v not in _EMPTY}


def _arguments(value: Any) -> Any:
    """Clients parse the arguments and write them anew, with other white space: what counts is their value."""
    if type(value) is str:
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value
