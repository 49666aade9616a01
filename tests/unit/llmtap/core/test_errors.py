"""The error tree: statuses and codes of the contract, one shape a dialect."""

from __future__ import annotations

import orjson
import pytest

from llmtap.core import errors as e

CONTRACT = [
    (e.BadRequest, 400, "bad_request"),
    (e.Unauthorized, 401, "invalid_api_key"),
    (e.Forbidden, 403, "model_not_allowed"),
    (e.NotFound, 404, "path_not_allowed"),
    (e.TooLarge, 413, "request_too_large"),
    (e.TooMany, 429, "rate_limit_exceeded"),
    (e.UpstreamFailed, 502, "upstream_error"),
    (e.NoHealthyBackend, 503, "no_healthy_backend"),
    (e.UpstreamTimeout, 504, "upstream_timeout"),
    (e.InternalError, 500, "internal_error"),
]


@pytest.mark.parametrize(("kind", "status", "code"), CONTRACT)
def test_status_and_code(kind: type[e.ApiError], status: int, code: str) -> None:
    error = kind("what happened")
    assert (error.status, error.code) == (status, code)
    assert issubclass(kind, e.LlmtapError)


def test_every_api_error_is_in_the_list() -> None:
    assert set(e.ApiError.__subclasses__()) >= {kind for kind, _, _ in CONTRACT}


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/api/chat", "ollama"),
        ("/api/v1/status", "openai"),
        ("/x", "openai"),
    ],
)
def test_dialect(path: str, dialect: str) -> None:
    assert e.dialect_of(path) == dialect


def test_bodies() -> None:
    error = e.NotFound("no such model", code="model_not_found", param="model")
    assert orjson.loads(e.error_body(error, "openai")) == {
        "error": {"message": "no such model", "type": "not_found_error", "param": "model", "code": "model_not_found"}
    }
    assert orjson.loads(e.error_body(error, "anthropic")) == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "no such model"},
    }
    assert orjson.loads(e.error_body(error, "ollama")) == {"error": "no such model"}


def test_last_event_of_a_stream_has_the_framing_of_its_dialect() -> None:
    error = e.UpstreamFailed("gone")
    assert e.stream_error(error, "openai").startswith(b'data: {"error":') and e.stream_error(error, "openai").endswith(b"\n\n")
    assert e.stream_error(error, "anthropic").startswith(b'event: error\ndata: {"type":"error"')
    assert e.stream_error(error, "ollama") == b'{"error":"gone"}\n'


def test_retry_after_is_there_where_waiting_helps() -> None:
    assert e.TooMany("x").retry_after_s == 1
    assert e.NoHealthyBackend("x").retry_after_s == 5
    assert e.TooMany("x", retry_after_s=7).retry_after_s == 7
    assert e.BadRequest("x").retry_after_s is None
