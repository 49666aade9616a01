"""The usage event we asked for ourselves, kept from the client that did not.

A chat or completions stream passes byte for byte, except:
- the event with `choices: []` and a `usage` is withheld;
- what a server moves into that event is moved back. vLLM puts `system_fingerprint` on the finishing chunks of a stream
  without usage, but on the usage chunk of a stream with it; llama.cpp does so with `timings`. A finishing chunk is
  therefore held until the next event comes, and gets the member back at the place where the server would have put it;
- the zero usage that Ollama adds to every chunk of a completions stream is taken out again.

A server that puts real usage on every chunk unasked (vLLM's --enable-force-include-usage) would have sent the usage event
to this client anyway: it passes.

Never more than `max_held` bytes are held; beyond that everything passes unseen. Nothing raises, whatever the bytes.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

MAX_HELD = 1024 * 1024
#: the end of an event, whatever ends its lines
_END = re.compile(rb"\r\r|\n\n|\n\r\n")
_FINISH = re.compile(rb'"finish_reason":\s?"')
# quotes inside JSON strings are escaped, so neither can occur in a text
_NO_USAGE = b'"usage":null'
_ZERO_USAGE = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'


class _Held(NamedTuple):
    event: bytes
    finishing: bool


class UsageFilter:
    """`feed(bytes) -> bytes` to forward now, `flush() -> bytes` at the end or when the stream breaks.

    With several choices, the ones that finish early leave before the usage event has come: they get `fingerprint` if one
    is given (a server's is the same for all its replies; the attribute holds the last one seen).
    """

    def __init__(self, fingerprint: str | None = None, *, max_held: int = MAX_HELD) -> None:
        self.fingerprint = fingerprint
        self._max = max_held
        self._buffer = bytearray()  # the beginning of an event
        self._searched = 0  # of the buffer, for its end
        self._held: list[_Held] = []
        self._held_size = 0
        self._passing = False
        self._counted = False  # a chunk with choices had real usage
        self._uncounted = False  # a chunk with choices had none

    def ordinary(self, data: bytes) -> bytes:
        """`feed` for whole events known to have neither a usage nor a finish reason (`StreamDecoder.quick`): nothing has to be
        looked for in them."""
        if self._buffer or self._held:
            return self.feed(data)
        self._uncounted = self._uncounted or b'"choices"' in data
        return data

    def feed(self, data: bytes) -> bytes:
        """The bytes to forward; b"" while an event is incomplete or held."""
        if self._passing:
            return data
        if (
            not self._buffer
            and not self._held
            and data.endswith(b"\n\n")
            and b'"usage"' not in data
            # mostly `"finish_reason":null`, and cheaper to see than to search for the pattern
            and (data.count(b'"finish_reason"') == data.count(b'"finish_reason":null') or _FINISH.search(data) is None)
            and b"\r" not in data
        ):
            self._uncounted = self._uncounted or b'"choices"' in data
            return data
        self._buffer += data
        out = bytearray()
        start = 0
        while not self._passing:
            end = _END.search(self._buffer, max(start, self._searched - 2))
            if end is None:
                break
            out += self._event(bytes(self._buffer[start : end.end()]))
            start = self._searched = end.end()
        del self._buffer[:start]
        self._searched = len(self._buffer)
        if self._passing or self._held_size + len(self._buffer) > self._max:
            self._passing = True
            out += self.flush()
        return bytes(out)

    def flush(self) -> bytes:
        """Everything still held, unchanged."""
        out = b"".join(held.event for held in self._held) + bytes(self._buffer)
        self._held.clear()
        self._held_size = 0
        self._buffer.clear()
        self._searched = 0
        return out

    def _event(self, event: bytes) -> bytes:
        if self._held_size + len(event) > self._max:
            self._passing = True
            return self._release() + event
        if b"data" not in event:  # a comment, or blank lines: says nothing, keeps its place
            return self._hold(event, finishing=False) if self._held else event
        if b'"usage"' in event and _NO_USAGE not in event:
            usage_event = self._usage_of(event)
            if usage_event is not None:
                return self._release(usage_event, event)
            event = event.replace(_ZERO_USAGE, b"")
        elif b'"choices"' in event:
            self._uncounted = True
        if _FINISH.search(event) is not None:
            return self._hold(event, finishing=True)
        return self._release() + event

    def _usage_of(self, event: bytes) -> dict[str, Any] | None:
        """The parsed event if it is the one to withhold."""
        chunk = _parse(event)
        if chunk is None:
            return None
        usage = chunk.get("usage")
        if chunk.get("choices"):
            real = type(usage) is dict and any(usage.values())
            self._counted, self._uncounted = self._counted or real, self._uncounted or not real
            return None
        if type(usage) is not dict or chunk.get("choices") != [] or (self._counted and not self._uncounted):
            return None
        return chunk

    def _hold(self, event: bytes, *, finishing: bool) -> bytes:
        self._held.append(_Held(event, finishing))
        self._held_size += len(event)
        return b""

    def _release(self, usage_event: dict[str, Any] | None = None, raw: bytes = b"") -> bytes:
        if usage_event is not None:
            fingerprint = usage_event.get("system_fingerprint")
            if type(fingerprint) is str:
                self.fingerprint = fingerprint
            timings = _last_member(raw, "timings") if "timings" in usage_event else b""
        elif not self._held:
            return b""
        else:
            timings = b""
        out = bytearray()
        last = max((i for i, held in enumerate(self._held) if held.finishing), default=-1)
        for position, (event, finishing) in enumerate(self._held):
            if finishing and self.fingerprint is not None and (usage_event is None or "system_fingerprint" in usage_event):
                event = _with_fingerprint(event, self.fingerprint)
            if position == last and timings:
                event = _with_last(event, "timings", timings)
            out += event
        self._held.clear()
        self._held_size = 0
        return bytes(out)


def _span(event: bytes) -> tuple[int, int]:
    """Where the JSON object of an event begins and ends."""
    return event.find(b"{"), event.rfind(b"}") + 1


def _parse(event: bytes) -> dict[str, Any] | None:
    start, end = _span(event)
    if start < 0 or not event.startswith(b"data:"):
        return None
    try:
        chunk = orjson.loads(event[start:end])
    except orjson.JSONDecodeError:
        return None
    return chunk if type(chunk) is dict else None


def _with_fingerprint(event: bytes, fingerprint: str) -> bytes:
    """vLLM writes the member right behind `choices`: last in 0.32, before `kv_transfer_params` in 0.33."""
    start, end = _span(event)
    place = event.rfind(b'],"kv_transfer_params":', start, end)
    if place < 0 and event.endswith(b"]}", start, end):
        place = end - 2
    if place < 0:
        return event
    member = b',"system_fingerprint":' + orjson.dumps(fingerprint)
    return _checked(event, event[: place + 1] + member + event[place + 1 :], "system_fingerprint")


def _last_member(event: bytes, name: str) -> bytes:
    """The bytes of an object's last member, with the comma before it, or b"" when `name` is not the last one."""
    start, end = _span(event)
    place = event.rfind(b',"%s":' % name.encode(), start, end)
    try:
        return event[place : end - 1] if place > 0 and list(orjson.loads(b"{" + event[place + 1 : end])) == [name] else b""
    except orjson.JSONDecodeError:
        return b""


def _with_last(event: bytes, name: str, member: bytes) -> bytes:
    """llama.cpp appends the member to whichever chunk is the last."""
    end = _span(event)[1] - 1
    return _checked(event, event[:end] + member + event[end:], name)


def _checked(event: bytes, changed: bytes, name: str) -> bytes:
    """The changed event, if it is the old one with just that member more; else the old one."""
    before, after = _parse(event), _parse(changed)
    if before is None or after is None or name in before:
        return event
    return changed if {key: value for key, value in after.items() if key != name} == before else event
