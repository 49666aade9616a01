"""The structure of JSON without its values: keys in their order, types, nulls. Where two servers differ in it clients fail."""

from __future__ import annotations

import json
from collections.abc import Iterable


def shape(value: object) -> str:
    """`{"a": 1, "b": [null, "x"]}` as `{a:int,b:[null,str]}`.

    Elements of one shape are told once; keys that are data (token ids, token texts) are `*`.
    """
    if isinstance(value, dict):
        if value and (all(isinstance(v, float) for v in value.values()) or all(k.isdigit() for k in value)):
            return "{*:" + ",".join(dict.fromkeys(map(shape, value.values()))) + "}"
        return "{" + ",".join(f"{k}:{shape(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(dict.fromkeys(map(shape, value))) + "]"
    return "null" if value is None else type(value).__name__


def event_json(event: bytes) -> object:
    """The JSON of one server-sent event; the text `[DONE]` for the end. Fails on anything that is not exactly one event."""
    assert event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n\n") == 1, event
    data = event[6:-2]
    return "[DONE]" if data == b"[DONE]" else json.loads(data)


def stream_shapes(events: Iterable[bytes]) -> list[str]:
    """The shapes of a stream's events, runs of the same one told once."""
    shapes: list[str] = []
    for event in events:
        data = event_json(event)
        found = data if isinstance(data, str) else shape(data)
        if shapes[-1:] != [found]:
            shapes.append(found)
    return shapes


def named_shapes(body: bytes) -> list[str]:
    """The same of a stream whose events have names, which must be their types: `type shape`."""
    shapes: list[str] = []
    for block in body.split(b"\n\n")[:-1]:
        first, _, second = block.partition(b"\n")
        assert first.startswith(b"event: ") and second.startswith(b"data: "), block
        data = json.loads(second[6:])
        assert first[7:].decode() == data["type"]
        found = f"{data['type']} {shape(data)}"
        if shapes[-1:] != [found]:
            shapes.append(found)
    return shapes


def line_shapes(body: bytes) -> list[str]:
    """The same of JSON lines."""
    found = [shape(json.loads(line)) for line in body.splitlines()]
    return [one for at, one in enumerate(found) if not at or found[at - 1] != one]
