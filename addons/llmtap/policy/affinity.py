"""What makes two requests belong together: their session, the beginning of their conversation, the response they go on from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

#: of one message, what is looked at
_LOOK = 65536
#: of a prompt that is one text or one list of tokens: a growing conversation keeps its beginning
_PROMPT_TEXT = 512
_PROMPT_TOKENS = 128


def session_key(session: str) -> int:
    """64 bits for a session's name, the same in every process."""
    return int.from_bytes(blake2b(session.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def prefix_key(endpoint: str, obj: Mapping[str, Any]) -> int | None:
    """64 bits for how a generation's prompt begins; None for requests that leave nothing in a prefix cache.

    Of a conversation it is everything up to the first message of the user: every later turn begins like that, and two
    conversations that differ there share little. Of a plain prompt it is the first 512 characters (128 tokens).
    """
    hashed = blake2b(digest_size=8)
    model = obj.get("model")
    if type(model) is str:
        hashed.update(model.encode("utf-8", "surrogatepass"))
    match endpoint:
        case "chat" | "ollama_chat":
            found = _conversation(hashed, obj.get("messages"))
        case "messages":
            _add(hashed, obj.get("system"))
            found = _conversation(hashed, obj.get("messages"))
        case "responses":
            _add(hashed, obj.get("instructions"))
            given = obj.get("input")
            found = _conversation(hashed, given) if type(given) is list else _prompt(hashed, given)
        case "completions" | "ollama_generate":
            _add(hashed, obj.get("system"))
            found = _prompt(hashed, obj.get("prompt"))
        case _:
            found = False
    return int.from_bytes(hashed.digest()) if found else None


def _conversation(hashed: blake2b, messages: Any) -> bool:
    if type(messages) is not list:
        return False
    seen = False
    for message in messages:
        if type(message) is not dict:
            break
        role = message.get("role")
        _add(hashed, role)
        _add(hashed, message.get("content"))
        seen = True
        if role == "user":
            break
    return seen


def _prompt(hashed: blake2b, prompt: Any) -> bool:
    if type(prompt) is list:
        if prompt and type(prompt[0]) is not int:
            return _prompt(hashed, prompt[0])
        prompt = prompt[:_PROMPT_TOKENS]
    elif type(prompt) is str:
        prompt = prompt[:_PROMPT_TEXT]
    if not prompt:
        return False
    _add(hashed, prompt)
    return True


def _add(hashed: blake2b, value: Any) -> None:
    if type(value) is str:
        data = value[:_LOOK].encode("utf-8", "surrogatepass")
    elif value is None:
        data = b""
    else:
        try:
            data = orjson.dumps(value)[:_LOOK]
        except TypeError:  # numbers no engine could read either
            data = b"?"
    hashed.update(b"%d:" % len(data))
    hashed.update(data)


class Homes:
    """Where stored responses live (`/v1/responses/{id}`, `previous_response_id`): id -> backend's name, the latest `size`."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._of: OrderedDict[str, str] = OrderedDict()

    def note(self, response_id: str, backend: str) -> None:
        """This backend has it."""
        self._of[response_id] = backend
        self._of.move_to_end(response_id)
        if len(self._of) > self._size:
            self._of.popitem(last=False)

    def of(self, response_id: str) -> str | None:
        """The backend that has it, as far as is known."""
        return self._of.get(response_id)
