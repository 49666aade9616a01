"""Reading a request, and asking for usage."""

from __future__ import annotations

import orjson
import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.errors import BadRequest
from llmtap.exchange import Exchange
from llmtap.transforms import Transforms


def request(path: str, body: bytes, content_type: str = "application/json") -> tuple[http.HTTPFlow, Exchange]:
    flow = tflow.tflow()
    flow.request = http.Request.make("POST", f"http://h{path}", body, {"content-type": content_type})
    ex = Exchange("POST", path, ENDPOINTS[path], "openai", "127.0.0.1")
    ex.body = body
    return flow, ex


def test_usage_is_asked_for_on_streams_only() -> None:
    flow, ex = request("/v1/chat/completions", b'{"model":"m","messages":[],"stream":true}')
    Transforms().on_request(flow, ex)
    assert ex.usage_injected and ex.model == "m" and ex.stream
    sent = flow.request.raw_content or b""
    assert orjson.loads(sent)["stream_options"] == {"include_usage": True}
    assert flow.request.headers["content-length"] == str(len(sent))

    flow, ex = request("/v1/chat/completions", b'{"model":"m","messages":[]}')
    Transforms().on_request(flow, ex)
    assert not ex.usage_injected and flow.request.raw_content == ex.body


def test_a_client_that_asks_itself_keeps_its_bytes() -> None:
    body = b'{"model":"m", "messages":[],"stream":true,  "stream_options":{"include_usage":true}}'
    flow, ex = request("/v1/completions", body)
    Transforms().on_request(flow, ex)
    assert not ex.usage_injected and flow.request.raw_content == body


def test_other_endpoints_are_left_alone() -> None:
    body = b'{"model":"m","input":"x","stream":true}'
    flow, ex = request("/v1/responses", body)
    Transforms().on_request(flow, ex)
    assert not ex.usage_injected and flow.request.raw_content == body


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[1]", b'{"model": 3}', b'{"model":"m\xff"}', b'{"model":"m","stream":"yes"}']
)
def test_a_body_that_is_no_request_is_a_400(body: bytes) -> None:
    flow, ex = request("/v1/chat/completions", body)
    with pytest.raises(BadRequest) as caught:
        Transforms().on_request(flow, ex)
    assert "not json" not in caught.value.message


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_wrong_content_type_is_a_400(content_type: str) -> None:
    flow, ex = request("/v1/chat/completions", b'{"model":"m"}', content_type)
    with pytest.raises(BadRequest) as caught:
        Transforms().on_request(flow, ex)
    assert caught.value.param == "content-type"


FORM = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'


def test_a_form_names_its_model() -> None:
    flow, ex = request("/v1/audio/transcriptions", FORM + b"--x--", "multipart/form-data; boundary=x")
    Transforms().on_request(flow, ex)
    assert ex.model == "whisper"
    flow, ex = request("/v1/audio/transcriptions", FORM * 2 + b"--x--", "multipart/form-data; boundary=x")
    with pytest.raises(BadRequest):
        Transforms().on_request(flow, ex)


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/chat/completions"])
def test_a_body_that_is_not_here_is_not_parsed(path: str) -> None:
    class Upload:
        received = 5

    flow, ex = request(path, b"", "multipart/form-data; boundary=x")
    ex.upload = Upload()
    Transforms().on_request(flow, ex)
    assert ex.parsed is None


def test_a_preflight_has_no_body() -> None:
    flow, ex = request("/v1/chat/completions", b"")
    ex.method = "OPTIONS"
    Transforms().on_request(flow, ex)
    assert ex.parsed is None


@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded", "text/plain"])
def test_ollama_reads_json_whatever_it_is_called(content_type: str) -> None:
    body = b'{"model":"m","prompt":"x"}'
    flow, ex = request("/api/generate", body, content_type)
    Transforms().on_request(flow, ex)
    assert ex.model == "m" and ex.stream and not ex.usage_injected
    flow, ex = request("/v1/embeddings", body, content_type or "text/plain")
    with pytest.raises(BadRequest):
        Transforms().on_request(flow, ex)
