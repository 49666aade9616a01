"""Which web pages may ask."""

from __future__ import annotations

import pytest
from mitmproxy import http

from llmtap.cors import Cors

PAGE = "https://app.example.org"


def asking(origin: str | None = PAGE, method: str = "OPTIONS", **headers: str) -> http.Request:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if origin is not None:
        fields["origin"] = origin
    return http.Request.make(method, "http://gw/v1/chat/completions", b"", fields)


@pytest.mark.parametrize(
    ("allowed", "origin", "answer"),
    [
        ((PAGE,), PAGE, PAGE),
        ((PAGE,), "HTTPS://APP.example.org", "HTTPS://APP.example.org"),
        ((PAGE,), "https://evil.example.org", None),
        ((PAGE,), "https://app.example.org.evil.org", None),
        ((PAGE,), "null", None),
        (("*",), "https://any", "*"),
        (("*",), None, None),
    ],
)
def test_origins(allowed: tuple[str, ...], origin: str | None, answer: str | None) -> None:
    assert Cors(allowed).origin(asking(origin)) == answer


def test_a_preflight_is_answered_without_a_key() -> None:
    request = asking(access_control_request_method="POST", access_control_request_headers="authorization, content-type")
    response = Cors((PAGE,)).preflight(request)
    assert response is not None and response.status_code == 204
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in response.headers["access-control-allow-methods"]


def test_a_stranger_gets_no_permission() -> None:
    response = Cors((PAGE,)).preflight(asking("https://evil", access_control_request_method="POST"))
    assert response is not None and not any(name.startswith("access-control-allow") for name in response.headers)


def test_what_is_no_preflight() -> None:
    cors = Cors((PAGE,))
    assert cors.preflight(asking()) is None
    assert cors.preflight(asking(None, access_control_request_method="POST")) is None
    assert cors.preflight(asking(method="POST", access_control_request_method="POST")) is None
