"""Transcriptions in the shapes of vLLM 0.32's sources (a model that hears could not be recorded), and their decoder."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtap.wire.decode import decoder_for
from support.asgi_sim import Reply, SimApp
from support.shape import shape, stream_shapes

BOUNDARY = "----x"
PATH = "/v1/audio/transcriptions"


def form(file: bytes | None = b"RIFF" + b"\0" * 50_000, **fields: str) -> bytes:
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    if file is not None:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        parts.append(head.encode() + file + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def send(app: SimApp, path: str = PATH, file: bytes | None = b"RIFF" + b"\0" * 50_000, **fields: str) -> Reply:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return await app.request("POST", path, form(file, **fields), headers)


def summary(reply: Reply) -> Any:
    decoder = decoder_for("transcriptions", dict(reply.headers)["content-type"], 200)
    for piece in reply.chunks or [reply.body]:
        decoder.feed(piece)
    decoder.close()
    return decoder.summary


async def test_a_whole_transcription() -> None:
    reply = await send(SimApp(), model="tiny")
    assert shape(reply.json()) == "{text:str,usage:{type:str,seconds:int}}"
    assert reply.json()["usage"] == {"type": "duration", "seconds": 4}
    found = summary(reply)
    assert (found.choices[0].content, found.meta) == (reply.json()["text"], {"audio_seconds": 4})


async def test_verbose_json() -> None:
    reply = await send(SimApp(), response_format="verbose_json", language="de")
    assert [*reply.json()] == ["duration", "language", "text", "segments", "words"]
    assert summary(reply).meta == {"duration": reply.json()["duration"], "language": "de"}


async def test_a_translation_says_no_usage() -> None:
    assert [*(await send(SimApp(), "/v1/audio/translations")).json()] == ["text"]


async def test_a_stream() -> None:
    app = SimApp()
    reply = await send(app, stream="true", stream_include_usage="true")
    head = "{id:str,object:str,created:int,model:str,choices:["
    usage = "usage:{prompt_tokens:int,total_tokens:int,completion_tokens:int}}"
    assert stream_shapes(reply.chunks) == [
        head + "{delta:{content:str}}]}",
        head + "{delta:{content:str},finish_reason:str}]}",
        head + "]," + usage,
        "[DONE]",
    ]
    found = summary(reply)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == app.sim.metrics.counts()
    assert found.complete
    whole = await send(SimApp())
    assert found.choices[0].content.strip() == whole.json()["text"]  # the same file, the same words


async def test_usage_on_every_chunk_and_on_none() -> None:
    every = await send(SimApp(), stream="true", stream_include_usage="true", stream_continuous_usage_stats="true")
    assert all("usage" in json.loads(chunk[6:]) for chunk in every.chunks[:-1])
    none = await send(SimApp(), stream="true")
    assert not any(b"usage" in chunk for chunk in none.chunks)
    assert summary(none).usage.source == "estimated"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "nope"}, 404),
        ({"response_format": "srt"}, 400),
        ({"response_format": "verbose_json", "stream": "true"}, 400),
        ({"stream_include_usage": "true"}, 400),
        ({"file": None}, 422),
    ],
)
async def test_refusals(fields: dict[str, Any], status: int) -> None:
    assert (await send(SimApp(), **fields)).status == status


async def test_what_is_no_form() -> None:
    app = SimApp()
    assert (await app.request("POST", PATH, {"file": "x"})).status == 400
    broken = await app.request("POST", PATH, b"--", {"content-type": "multipart/form-data"})
    assert broken.status == 400
