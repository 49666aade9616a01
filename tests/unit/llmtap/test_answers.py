"""Answers of our own."""

from __future__ import annotations

import inspect

import orjson
import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap import answers
from llmtap.answers import error_response, last_words, own_headers, plain_failure
from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.errors import NoHealthyBackend, NotFound, TooLarge
from llmtap.core.record import Summary
from llmtap.exchange import Exchange


class Holding:
    """A tee that holds something back."""

    def __call__(self, data: bytes) -> bytes:
        return data

    def held(self) -> bytes:
        return b"held|"

    def close(self) -> None: ...


def exchange(path: str = "/v1/chat/completions", kind: str = "text/event-stream; charset=utf-8") -> Exchange:
    ex = Exchange("POST", path, ENDPOINTS[path], "anthropic" if "messages" in path else "openai", "127.0.0.1")
    ex.status, ex.content_type, ex.tee = 200, kind, Holding()
    return ex


def test_an_error_has_its_status_its_dialect_and_our_headers() -> None:
    ex = exchange("/v1/messages")
    response = error_response(NoHealthyBackend("nobody there"), ex, None)
    assert response.status_code == 503 and response.headers["retry-after"] == "5"
    assert response.headers["x-request-id"] == ex.uid
    assert orjson.loads(response.content or b"")["error"]["type"] == "overloaded_error"


def test_without_an_exchange_the_path_tells_the_dialect() -> None:
    response = error_response(NotFound("no"), None, http.Request.make("POST", "http://h/api/chat"))
    assert orjson.loads(response.content or b"") == {"error": "no"}
    assert orjson.loads(error_response(NotFound("no"), None, None).content or b"")["error"]["message"] == "no"


def test_a_body_that_was_not_read_ends_the_connection() -> None:
    assert error_response(TooLarge("x"), None, None).headers["connection"] == "close"


def test_last_words_are_what_was_held_and_one_error_event() -> None:
    words = last_words(exchange())
    assert words.startswith(b'held|data: {"error":') and words.endswith(b"\n\n")
    assert last_words(exchange("/v1/messages")).startswith(b"held|event: error\n")
    assert last_words(exchange(kind="application/x-ndjson")).endswith(b'"}\n')


def test_there_are_none_after_the_end_or_on_what_is_no_stream() -> None:
    ended = exchange()
    ended.summary = Summary(complete=True)
    assert last_words(ended) == b"held|"
    assert last_words(exchange(kind="application/json")) == b"held|"
    failed = exchange()
    failed.status = 500
    assert last_words(failed) == b""


def test_own_headers() -> None:
    ex = exchange()
    ex.request_id, ex.backend, ex.queue_s = "mine", "a", 0.0123
    headers = http.Headers()
    own_headers(headers, ex)
    assert dict(headers) == {
        "x-request-id": "mine",
        "x-llmtap-backend": "a",
        "x-llmtap-cache": "bypass",
        "x-llmtap-queue-ms": "12.3",
        "x-llmtap-attempts": "0",
    }


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("server closed connection", "closed the connection"),
        ("[Errno 111] Connect call failed ('127.0.0.1', 9): connection refused", "refused"),
        ("unexpected server response: b'SECRET'", "unexpected server response"),
    ],
)
def test_reasons_in_plain_words_without_what_a_backend_wrote(message: str, words: str) -> None:
    assert words in plain_failure(message) and "SECRET" not in plain_failure(message)


@pytest.mark.parametrize(
    ("client", "server", "message", "left"),
    [
        (None, None, "Client disconnected.", True),
        (b"h2", None, "peer closed connection", True),
        (b"h2", b"http/1.1", "stream reset by client (CANCEL)", True),
        (b"h2", None, "HTTP/2 connection closed: <ConnectionTerminated>", True),
        (b"h2", None, "server closed connection", False),
        (b"h2", b"h2", "peer closed connection", False),
        (b"http/1.1", None, "peer closed connection", False),
    ],
)
def test_who_has_left(client: bytes | None, server: bytes | None, message: str, left: bool) -> None:
    flow = tflow.tflow()
    flow.client_conn.alpn, flow.server_conn.alpn = client, server
    assert answers.client_left(flow, message) is left


def test_the_words_are_mitmproxys() -> None:
    from mitmproxy.proxy.layers.http import _http1, _http2

    assert "Client disconnected." in inspect.getsource(_http1)
    source = inspect.getsource(_http2)
    assert all(words in source for words in answers._HTTP2_GONE)
