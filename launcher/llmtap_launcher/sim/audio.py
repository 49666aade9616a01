"""Transcription and translation of uploads, as vLLM writes them: JSON, verbose JSON, or a stream of chunks.

Nothing is listened to: the words come from a hash of the file, and a minute of speech is taken for a megabyte.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from . import generate
from .bodies import DONE, EVENT_STREAM, JSON, Envelope, Json, event
from .errors import VllmError, internal_error, validation_error
from .front import Received, received
from .requests import Generate
from .script import Plan, Step, write
from .simulation import Simulation
from .text import rng

_BYTES_PER_SECOND = 1_000_000 / 60
_TOKENS_PER_SECOND = 4
_FORMATS = ("json", "text", "verbose_json")
_TRUE = ("true", "1", "yes", "on")
_MAX_TOKENS = 448  # of one window, as Whisper's


async def transcriptions(sim: Simulation, request: Request) -> Response:
    """`POST /v1/audio/transcriptions`. Raises VllmError."""
    return await _listen(sim, request, "transcription", "trsc")


async def translations(sim: Simulation, request: Request) -> Response:
    """`POST /v1/audio/translations`. Raises VllmError."""
    return await _listen(sim, request, "translation", "trsl")


async def _listen(sim: Simulation, request: Request, kind: str, prefix: str) -> Response:
    got = received(request.scope)
    form = await _form(request, got.body)
    try:
        return await _answer(sim, request, got, form, kind, prefix)
    finally:
        await form.close()


async def _answer(sim: Simulation, request: Request, got: Received, form: FormData, kind: str, prefix: str) -> Response:
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise VllmError("Expected 'file' to be a file-like object, not 'str'.", type="Unprocessable Entity", code=422)
    audio = await upload.read()
    model = generate.check_model(sim, _text(form, "model") or None)
    wanted, stream = _text(form, "response_format") or "json", _flag(form, "stream")
    if wanted not in _FORMATS:
        raise VllmError("Currently only support response_format: `text`, `json` or `verbose_json`")
    if wanted == "verbose_json" and stream:
        raise VllmError("verbose_json format doesn't support streaming case")
    if _flag(form, "stream_include_usage") and not stream:
        raise VllmError("Stream options can only be defined when `stream=True`.", param="stream_include_usage")
    seconds = len(audio) / _BYTES_PER_SECOND
    length = got.directives.tokens or min(_MAX_TOKENS, 12 + int(seconds * _TOKENS_PER_SECOND))
    script = write(sim.tokenizer, rng(sim.settings.seed, audio), Plan(max_tokens=_MAX_TOKENS, length=length, lead=" "))
    prompt_tokens = 4 + len(sim.tokenizer.encode(_text(form, "prompt")))
    writer = AudioWriter(
        generate.envelope(request, prefix, model),
        kind,
        prompt_tokens,
        seconds,
        verbose=wanted == "verbose_json",
        language=_text(form, "language") or "en",
        include_usage=_flag(form, "stream_include_usage"),
        continuous=_flag(form, "stream_continuous_usage_stats"),
    )
    return generate.respond(sim, got, Generate(stream=stream), writer, [script], [prompt_tokens], _MAX_TOKENS)


async def _form(request: Request, body: bytes) -> FormData:
    """The fields of a form whose body is in. Raises VllmError."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise validation_error([{"type": "missing", "loc": ("body", "file"), "msg": "Field required", "input": None}])
    try:
        return await MultiPartParser(request.headers, stream()).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError):
        raise VllmError("There was an error parsing the body") from None


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value if isinstance(value, str) else ""


def _flag(form: FormData, name: str) -> bool:
    return _text(form, name).lower() in _TRUE


class AudioWriter:
    """Chunks without an index, as there is one choice only; `verbose` adds what is known of the recording."""

    media_type = EVENT_STREAM
    whole_type = JSON
    end = DONE

    def __init__(
        self,
        envelope: Envelope,
        kind: str,
        prompt_tokens: int,
        seconds: float,
        *,
        verbose: bool,
        language: str,
        include_usage: bool,
        continuous: bool,
    ) -> None:
        self._head = envelope.head(f"{kind}.chunk")
        self._prompt_tokens = prompt_tokens
        self._seconds = seconds
        self._verbose = verbose
        self._language = language
        self._include_usage = include_usage
        self._continuous = continuous and include_usage
        self._translates = kind == "translation"
        self._count = 0

    def opening(self) -> list[bytes]:
        """Nothing: the first chunk is the first token."""
        return []

    def step(self, choice: int, step: Step) -> bytes | None:
        """A chunk; the one that finishes has no text."""
        self._count += 1
        if not step.delta and not step.finish:
            return None
        said: Json = {"delta": {"content": step.delta}}
        if step.finish:
            said |= {"finish_reason": step.finish}
        chunk = {**self._head, "choices": [said]}
        if self._continuous:
            chunk["usage"] = self._usage()
        return event(chunk)

    def closing(self) -> list[bytes]:
        """The usage chunk, if asked for."""
        return [event({**self._head, "choices": [], "usage": self._usage()})] if self._include_usage else []

    def whole(self, scripts: Sequence[Sequence[Step]]) -> bytes:
        """The transcription; its usage is the length of the recording."""
        (steps,) = scripts
        text = "".join(step.delta for step in steps).strip()
        if not self._verbose:
            usage = {"type": "duration", "seconds": math.ceil(self._seconds)}
            return orjson.dumps({"text": text} if self._translates else {"text": text, "usage": usage})
        segment: dict[str, Any] = {"id": 0, "avg_logprob": -0.2, "compression_ratio": 1.1, "end": self._seconds}
        segment |= {"no_speech_prob": None, "seek": 0, "start": 0.0, "temperature": 0.0, "text": text}
        segment["tokens"] = [step.token for step in steps]
        known = {"duration": self._seconds, "language": self._language, "text": text}
        return orjson.dumps({**known, "segments": [segment], "words": None})

    def failure(self) -> bytes:
        """vLLM's error event."""
        return b"data: " + internal_error().body() + b"\n\n"

    def _usage(self) -> Json:
        total = self._prompt_tokens + self._count
        return {"prompt_tokens": self._prompt_tokens, "total_tokens": total, "completion_tokens": self._count}
