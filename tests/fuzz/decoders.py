"""Mutated recordings through every decoder and through the tee.

One execution: a recorded reply is altered (or two are spliced), cut anywhere, and read as the reply of its own endpoint or of
another one. What must hold:

- nothing is raised but `WireError`, at most once, and then the summary says so;
- the same bytes in other cuts, and without the short way of reading, come to the same summary, counts and errors;
- the summary can be stored, whatever the bytes were;
- the tee gives the client its bytes: all of them, or with the usage filter exactly what the filter makes of the whole stream.

`python tests/fuzz/decoders.py --executions N --seed X` (with `addons`, `launcher` and `tests` on the path) runs it; the same
seed gives the same inputs. `scaling` measures time and memory against size.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from llmtap.core.endpoints import ENDPOINTS, OTHER
from llmtap.core.errors import WireError
from llmtap.core.record import End, Summary, encode
from llmtap.exchange import Exchange
from llmtap.tee import Tee
from llmtap.wire.decode import Decoder, decoder_for
from llmtap.wire.shapes import MAX_LEARNED
from llmtap.wire.stream import StreamDecoder
from llmtap.wire.withhold import UsageFilter
from support import recordings
from support.recordings import Recording

BY_PATH = {path: endpoint.name for path, endpoint in ENDPOINTS.items()}
NAMES = sorted({*BY_PATH.values(), OTHER.name})
TYPES = ("text/event-stream; charset=utf-8", "application/json", "application/x-ndjson", "text/plain", "application/octet-stream")
#: longer recordings are cut to that: what happens in them happens in less too
MAX_BODY = 8_000
PATCHES = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\n\n", b"\r", b"\r\n\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf",
    b"null", b"true", b"-1", b"1e999", b"9" * 400, b"NaN", b'""', b"{}", b"[]", b"[" * 200, b"\\ud83d", b"\\u0000", b"data: ",
    b"data:", b"event: error\n", b": \n\n", b"data: [DONE]\n\n", b'{"error":"x"}', b'"usage":', b'"usage":null,',
    b'"choices":[],', b'"finish_reason":"stop"', b'"tool_calls":[{}]', b'"index":0,', b'"index":true,', b'"content":',
    b'"done":true', b"\xf0\x9f",
)  # fmt: skip


@dataclass
class Case:
    """One input: the bytes, how they are cut, and what they are taken for."""

    body: bytes
    cuts: tuple[list[int], list[int]]
    endpoint: str
    content_type: str
    status: int
    metadata: str | None


@dataclass
class Findings:
    """What came of a run. `failures`: what must not be, with the input."""

    executions: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    understood: int = 0
    complete: int = 0
    faults: int = 0  # WireErrors
    failures: list[tuple[str, Case]] = field(default_factory=list)


class Mutator:
    """Cases out of recordings, by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        loaded = [recordings.load(name) for name in recordings.names()]
        self._recordings = [recording for recording in loaded if recording.body]

    def case(self) -> Case:
        pick = self._random
        recording = pick.choice(self._recordings)
        body = bytearray(recording.body[:MAX_BODY])
        for _ in range(pick.choice((0, 1, 1, 1, 2, 3, 5))):
            body = pick.choice(_MUTATIONS)(pick, body, self._recordings)
        endpoint, content_type, status = endpoint_of(recording), recording.content_type, recording.status
        if pick.random() < 0.15:
            endpoint = pick.choice(NAMES)
        if pick.random() < 0.1:
            content_type = pick.choice(TYPES)
        if pick.random() < 0.1:
            status = pick.choice((200, 400, 500))
        data = bytes(body)
        return Case(data, (self._cuts(data), self._cuts(data)), endpoint, content_type, status, recording.headers.get("metadata"))

    def _cuts(self, data: bytes) -> list[int]:
        pick = self._random
        how = pick.randrange(4)
        if how == 0:  # as the server framed them: at the ends of events
            return [at + 2 for at in range(len(data) - 1) if data[at : at + 2] == b"\n\n"]
        if how == 1:
            return list(range(1, len(data), pick.choice((1, 7, 64)))) if len(data) < 2000 else [len(data) // 2]
        return sorted(pick.randrange(len(data) + 1) for _ in range(pick.randrange(12)))


def endpoint_of(recording: Recording) -> str:
    return BY_PATH.get(recording.path, OTHER.name)


def _place(pick: random.Random, body: bytearray) -> int:
    return pick.randrange(len(body) + 1)


def _insert(pick: random.Random, body: bytearray, _: list[Recording]) -> bytearray:
    at = _place(pick, body)
    body[at:at] = pick.choice(PATCHES)
    return body


def _overwrite(pick: random.Random, body: bytearray, _: list[Recording]) -> bytearray:
    at, patch = _place(pick, body), pick.choice(PATCHES)
    body[at : at + len(patch)] = patch
    return body


def _flip(pick: random.Random, body: bytearray, _: list[Recording]) -> bytearray:
    if body:
        body[pick.randrange(len(body))] ^= 1 << pick.randrange(8)
    return body


def _delete(pick: random.Random, body: bytearray, _: list[Recording]) -> bytearray:
    at = _place(pick, body)
    del body[at : at + pick.choice((1, 2, 10, 200))]
    return body


def _cut_short(pick: random.Random, body: bytearray, _: list[Recording]) -> bytearray:
    return body[: _place(pick, body)]


def _repeat(pick: random.Random, body: bytearray, _: list[Recording]) -> bytearray:
    start, end = sorted((_place(pick, body), _place(pick, body)))
    body[start:start] = body[start:end]
    return body


def _swap_events(pick: random.Random, body: bytearray, _: list[Recording]) -> bytearray:
    separator = b"\n\n" if b"\n\n" in body else b"\n"
    events = bytes(body).split(separator)
    pick.shuffle(events)
    return bytearray(separator.join(events))


def _swap_values(pick: random.Random, body: bytearray, _: list[Recording]) -> bytearray:
    """A member gets another's value, or one of another type."""
    parts = bytes(body).split(b",")
    at, other = pick.randrange(len(parts)), pick.randrange(len(parts))
    name, colon, _value = parts[at].partition(b":")
    parts[at] = name + colon + pick.choice((parts[other].rpartition(b":")[2], b"null", b"3", b'"x"', b"[1]", b'{"a":1}', b"1.5"))
    return bytearray(b",".join(parts))


def _splice(pick: random.Random, body: bytearray, others: list[Recording]) -> bytearray:
    other = pick.choice(others).body[:MAX_BODY]
    return body[: _place(pick, body)] + other[pick.randrange(len(other)) :]


_Mutation = Callable[[random.Random, bytearray, list[Recording]], bytearray]
_MUTATIONS: tuple[_Mutation, ...] = (
    _insert, _insert, _overwrite, _flip, _delete, _cut_short, _repeat, _swap_events, _swap_values, _swap_values, _splice,
)  # fmt: skip


def pieces_of(case: Case, which: int) -> list[bytes]:
    edges = [0, *case.cuts[which], len(case.body)]
    return [case.body[start:end] for start, end in itertools.pairwise(edges)]


def decoder_of(case: Case, *, long_way: bool = False) -> Decoder:
    decoder = decoder_for(case.endpoint, case.content_type, case.status, metadata=case.metadata)
    if long_way and isinstance(decoder, StreamDecoder):
        decoder._assembler.learned = MAX_LEARNED
    return decoder


def read(decoder: Decoder, pieces: list[bytes]) -> tuple[Summary, int, list[str]]:
    """The summary, the content events, and the WireErrors; any other exception is let out."""
    count, errors = 0, []
    for piece in pieces:
        try:
            count += decoder.feed(piece)
        except WireError as error:
            errors.append(str(error))
    try:
        count += decoder.close()
    except WireError as error:
        errors.append(str(error))
    return decoder.summary, count, errors


def check(case: Case) -> tuple[Decoder, Summary, list[str]]:
    """Raises AssertionError for what must not be, and lets out what must not be raised."""
    first, second = pieces_of(case, 0), pieces_of(case, 1)
    decoder = decoder_of(case)
    found = read(decoder, first)
    summary, count, errors = found
    assert len(errors) <= 1, "more than one fault was told"
    assert ("wire_error" in summary.meta) == bool(errors), "a fault that the summary does not know"
    assert count >= 0
    assert encode(End("U", 0, "ok", summary=summary)), "the summary cannot be stored"
    assert read(decoder_of(case), second) == found, "another cut, another meaning"
    assert read(decoder_of(case, long_way=True), second) == found, "the short way and the long way differ"

    assert through_tee(case, first, None) == case.body, "the tee changed bytes"
    if "event-stream" in case.content_type:
        alone = UsageFilter()
        assert through_tee(case, second, UsageFilter()) == alone.feed(case.body) + alone.flush(), "the tee changed the filter"
    return decoder, summary, errors


def through_tee(case: Case, pieces: list[bytes], usage_filter: UsageFilter | None) -> bytes:
    ex = Exchange("POST", "/x", OTHER, "openai", "127.0.0.1")
    ex.status = case.status
    tee = Tee(ex, decoder_of(case), usage_filter, lambda: None, time.monotonic)
    out = bytearray()
    for piece in [*filter(None, pieces), b""]:  # an empty piece is the end
        given = tee(piece)
        out += given if isinstance(given, bytes) else b"".join(given)
    return bytes(out)


def run(executions: int, seed: int, stop_at: int = 5) -> Findings:
    """`executions` cases; ends early at `stop_at` failures."""
    mutator, findings = Mutator(seed), Findings()
    for _ in range(executions):
        case = mutator.case()
        findings.executions += 1
        try:
            decoder, summary, errors = check(case)
        except Exception as error:
            findings.failures.append((f"{type(error).__name__}: {error}", case))
            if len(findings.failures) >= stop_at:
                break
            continue
        findings.kinds[type(decoder).__name__] += 1
        findings.understood += decoder.understands
        findings.complete += summary.complete
        findings.faults += bool(errors)
    return findings


@dataclass(frozen=True, slots=True)
class Scaling:
    """One mutated body, and the same many times in a row: CPU seconds and traced bytes at the peak."""

    case: Case
    times: int
    seconds: tuple[float, float]
    peak: int
    size: int


def scaling(seed: int, bodies: int = 30, times: int = 16) -> list[Scaling]:
    """How time grows with size, least of three runs each, and how much memory a large reply takes at most."""
    mutator = Mutator(seed)
    out = []
    while len(out) < bodies:
        case = mutator.case()
        if len(case.body) < 1000:
            continue
        small, large = case.body, case.body * times
        seconds = tuple(min(_cpu(case, body) for _ in range(3)) for body in (small, large))
        tracemalloc.start()
        try:
            read(decoder_of(case), _slices(large))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        out.append(Scaling(case, times, (seconds[0], seconds[1]), peak, len(large)))
    return out


def _slices(body: bytes) -> list[bytes]:
    return [body[at : at + 50] for at in range(0, len(body), 50)]


def _cpu(case: Case, body: bytes) -> float:
    decoder, pieces = decoder_of(case), _slices(body)
    began = time.thread_time()
    read(decoder, pieces)
    return time.thread_time() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.perf_counter()
    findings = run(options.executions, options.seed)
    took = time.perf_counter() - began
    print(f"{findings.executions} executions in {took:.0f} s ({findings.executions / took:.0f} a second), seed {options.seed}")
    print(f"understood {findings.understood}, complete {findings.complete}, WireError {findings.faults}")
    print(", ".join(f"{name} {count}" for name, count in findings.kinds.most_common()))
    worst = max(scaling(options.seed), key=lambda found: found.seconds[1] / found.seconds[0])
    ratio = worst.seconds[1] / worst.seconds[0]
    print(f"{worst.times} times the size takes at most {ratio:.1f} times the CPU")
    for what, case in findings.failures:
        print(f"FAILED: {what}\n  {case}")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
