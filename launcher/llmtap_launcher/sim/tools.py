"""When the simulated model calls a tool, and with which arguments.

It calls one when it must, when the last user message names a tool, or when that message asks for the "weather in X [and Y]". The
arguments fit the parameters' JSON schema and are made of the prompt's words where they can be.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .requests import Function, Message, Tool
from .script import Call

_WEATHER = re.compile(r"\bweather\s+(?:in|at|for)\s+([^?.!\n]+)", re.IGNORECASE)
_PLACE_NAMES = ("city", "location", "place", "town", "address")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_QUOTED = re.compile(r"[\"“']([^\"”']+)[\"”']")
_MAX_DEPTH = 8
_MAX_ITEMS = 100
_MAX_CALLS = 8

Schema = Mapping[str, Any]


def choose_calls(
    tools: Sequence[Tool] | None, choice: str | None, forced_name: str | None, messages: Sequence[Message]
) -> tuple[Call, ...]:
    """The calls to make for `messages`; none when the model should answer in words. `choice`: none, auto, required."""
    functions = [tool.function for tool in tools or ()]
    if not functions or choice == "none":
        return ()
    prompt = message_text(next((m for m in reversed(messages) if m.role == "user"), Message(role="user")))
    subjects = _subjects(prompt)
    if forced_name is not None:
        return tuple(_call(f, prompt, subjects[:1]) for f in functions if f.name == forced_name)[:1]
    # after a tool's result comes the answer, or an agent would never end
    if choice != "required" and messages and messages[-1].role != "user":
        return ()
    named = [f for f in functions if _mentions(prompt, f.name)]
    if subjects and not named:
        named = [next((f for f in functions if "weather" in f"{f.name} {f.description}".lower()), functions[0])]
    if len(named) == 1:
        return tuple(_call(named[0], prompt, [subject]) for subject in subjects) or (_call(named[0], prompt, []),)
    if named:
        return tuple(_call(f, prompt, subjects[:1]) for f in named)
    return (_call(functions[0], prompt, []),) if choice == "required" else ()


def message_text(message: Message) -> str:
    """The text of a message, its parts joined; what is not text (images, audio) is left out."""
    content = message.content
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if "text" in part)
    return content or ""


def _mentions(prompt: str, name: str) -> bool:
    spoken = re.escape(name).replace("_", "[_ ]")
    return bool(name) and re.search(rf"(?<!\w){spoken}(?!\w)", prompt, re.IGNORECASE) is not None


def _subjects(prompt: str) -> list[str]:
    """The X and Y of "weather in X and Y"."""
    found = _WEATHER.search(prompt)
    if not found:
        return []
    parts = [part.strip() for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", found.group(1)) if part.strip()]
    # "Paris, New York and Rome in celsius please": names are written with capitals, and end where those end
    names = [" ".join(itertools.takewhile(lambda word: not word[0].islower(), part.split())) for part in parts]
    return [name for name in names if name][:_MAX_CALLS] or parts[:1]


def _call(function: Function, prompt: str, subject: Sequence[str]) -> Call:
    arguments = generate(function.parameters or {}, prompt, subject[0] if subject else None)
    return Call(function.name, json.dumps(arguments if isinstance(arguments, dict) else {}, ensure_ascii=False))


def generate(schema: Schema, prompt: str, subject: str | None = None) -> Any:
    """A value that fits `schema`, made of the prompt's words; `subject` is what a property named like a place gets.

    A schema that is none gets an empty object.
    """
    try:
        return _value(schema, "", prompt, subject, schema, 0)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return {}


def _value(schema: Schema, name: str, prompt: str, subject: str | None, root: Schema, depth: int) -> Any:
    schema = _resolve(schema, root)
    for key in ("anyOf", "oneOf", "allOf"):
        options = schema.get(key)
        if isinstance(options, list) and options and isinstance(options[0], Mapping):
            schema = {**schema, **_resolve(options[0], root)}
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return next((v for v in schema["enum"] if str(v).lower() in prompt.lower()), schema["enum"][0])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or (kind is None and "properties" in schema) or depth == 0:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) and depth < _MAX_DEPTH else {}
        required = schema.get("required") or [*properties]
        return {
            key: _value(value, key, prompt, subject, root, depth + 1)
            for key, value in properties.items()
            if key in required and isinstance(value, Mapping)
        }
    if kind in ("integer", "number"):
        return _number(schema, prompt, kind == "integer")
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    if kind == "array":
        items = schema.get("items")
        count = min(max(1, int(schema.get("minItems", 1))), _MAX_ITEMS)
        item = (
            _value(items, name, prompt, subject, root, depth + 1) if isinstance(items, Mapping) and depth < _MAX_DEPTH else "item"
        )
        return [item] * count
    return _string(name, prompt, subject)


def _resolve(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return schema
    found: Any = root
    for part in reference[2:].split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else schema


def _number(schema: Schema, prompt: str, integer: bool) -> int | float:
    low, high = schema.get("minimum", 1), schema.get("maximum", 1_000_000)
    for text in _NUMBER.findall(prompt):
        value = int(float(text)) if integer else float(text)
        if low <= value <= high:
            return value
    return int(low) if integer else float(low)


def _string(name: str, prompt: str, subject: str | None) -> str:
    if subject is not None and (name.lower() in _PLACE_NAMES or not name):
        return subject
    quoted = _QUOTED.search(prompt)
    if quoted:
        return quoted.group(1)
    if subject is not None:
        return subject
    words = re.findall(r"\w+", prompt)
    capitalised = [word for word in words[1:] if word[0].isupper()]
    return " ".join(capitalised[:3]) or (words[-1] if words else "text")
