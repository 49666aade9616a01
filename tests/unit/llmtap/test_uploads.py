"""Which request bodies go on as they come, and what is read of a form on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.config import Config
from llmtap.core.endpoints import OTHER, endpoint_of
from llmtap.core.errors import BadRequest, TooLarge
from llmtap.exchange import Exchange
from llmtap.policy.backends import Backend, Backends
from llmtap.uploads import LOOK_BYTES, Uploads

AUDIO = "/v1/audio/transcriptions"
ONE = (Backend("a", "10.0.0.1", 8081, models=("m",)),)
TWO = (*ONE, Backend("b", "10.0.0.2", 8081, models=("n",)))


def arriving(path: str, **headers: str) -> tuple[http.HTTPFlow, Exchange]:
    flow = tflow.tflow()
    flow.request = http.Request.make("POST", f"http://gateway{path}", b"", {k.replace("_", "-"): v for k, v in headers.items()})
    flow.request.headers.pop("content-length", None)
    for name, value in headers.items():
        flow.request.headers[name.replace("_", "-")] = value
    return flow, Exchange("POST", path, endpoint_of(path) or OTHER, "openai", "127.0.0.1")


@pytest.mark.parametrize(
    ("path", "headers", "streams"),
    [
        (AUDIO, {"content_length": "5"}, True),
        ("/v1/audio/translations", {"transfer_encoding": "chunked"}, True),
        ("/proxy/9000/upload", {"content_length": str(1 << 20)}, False),
        ("/proxy/9000/upload", {"content_length": str((1 << 20) + 1)}, True),
        ("/proxy/9000/upload", {"transfer_encoding": "chunked"}, True),
        ("/proxy/9000/upload", {}, False),
        ("/v1/models", {}, False),
    ],
)
def test_which_bodies(path: str, headers: dict[str, str], streams: bool) -> None:
    flow, ex = arriving(path, **headers)
    assert Uploads.streams(flow.request, ex) is streams


class Body:
    """Shows `pieces`, one after the other."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.received = 0
        self.limit = 0

    async def look(self, look: Callable[[bytes], bool], limit: int) -> bool:
        self.limit = limit
        for piece in self.pieces:
            self.received += len(piece)
            if look(piece):
                return True
            if self.received > limit:
                return False
        return True


def field(name: str, value: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


async def read(
    body: Body, backends: tuple[Backend, ...] = ONE, content_type: str = "multipart/form-data; boundary=b", **config: Any
) -> Exchange:
    flow, ex = arriving(AUDIO, content_type=content_type)
    await Uploads(Config.model_validate(config), Backends(backends)).read(flow, ex, body)
    return ex


async def test_the_model_of_a_form() -> None:
    body = Body(field("stream", "true"), field("model", "m"), b"--b", b"\r\nnever looked at")
    ex = await read(body)
    assert (ex.model, ex.stream, body.limit) == ("m", True, LOOK_BYTES)
    assert body.received < 200


async def test_no_form_is_left_alone() -> None:
    for content_type in ("audio/wav", "multipart/form-data"):
        body = Body(b"xyz")
        assert (await read(body, content_type=content_type)).parsed is None
        assert body.received == 0


FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


async def test_where_the_model_makes_no_difference_it_need_not_be_found() -> None:
    ex = await read(Body(FILE, *[b"x" * 65536] * 3))
    assert ex.model is None and ex.parsed is not None


@pytest.mark.parametrize(
    ("backends", "config"),
    [
        (TWO, {}),
        (ONE, {"auth": {"enabled": True, "keys": [{"name": "k", "key_sha256": "0" * 64, "models": ["m"]}]}}),
    ],
)
async def test_where_it_does_the_form_is_read_up_to_it(backends: tuple[Backend, ...], config: dict[str, Any]) -> None:
    config = {"server": {"max_body_mb": 1}, **config}
    ex = await read(Body(FILE, *[b"x" * 65536] * 3, b"\r\n" + field("model", "n") + b"--b--"), backends, **config)
    assert ex.model == "n"
    with pytest.raises(TooLarge) as caught:
        await read(Body(FILE, *[b"x" * 65536] * 17), backends, **config)
    assert caught.value.param == "model" and "before the file" in caught.value.message


async def test_two_models_are_one_too_many() -> None:
    with pytest.raises(BadRequest) as caught:
        await read(Body(field("model", "m") + field("model", "n") + b"--b--"))
    assert "twice" in caught.value.message
