"""What HAR and flow files share: paths and encodings."""

from __future__ import annotations

import gzip
import zlib

import pytest
import zstandard

from llmtap_launcher.importing.entries import Malformed
from llmtap_launcher.importing.web import NotInference, decoded, entry, inference_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/proxy/8081/v1/messages", "/v1/messages"),
        ("/api/chat", "/api/chat"),
        ("/v1/models", None),
        ("/", None),
        ("", None),
        ("/sleep", None),
    ],
)
def test_paths(path: str, found: str | None) -> None:
    assert inference_path(path) == found


def test_encodings() -> None:
    body = b"hello" * 100
    deflate = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "Deflate": deflate.compress(body) + deflate.flush(),
        "zstd": zstandard.compress(body),
        "identity": body,
        "deflate, gzip": gzip.compress(zlib.compress(body)),
    }
    assert all(decoded(data, name) == body for name, data in packed.items())
    assert decoded(body, None) == body and decoded(b"", "gzip") == b""
    for name, data in (
        ("gzip", b"no"),
        ("deflate", b"no"),
        ("zstd", b"no"),
        ("br", b"no"),
        ("gzip", packed["gzip"][:20]),
        ("odd", b"x"),
    ):
        with pytest.raises(Malformed):
            decoded(data, name)


def test_brotli() -> None:
    brotli = pytest.importorskip("brotli")
    assert decoded(brotli.compress(b"hello"), "br") == b"hello"


def test_other_requests_are_passed_over() -> None:
    for method, url in (("GET", "https://e.org/v1/chat/completions"), ("POST", "https://e.org/login")):
        with pytest.raises(NotInference):
            entry("har", "1", url, method, {}, {}, at_us=1, body=b"")
    made = entry("har", "1", "https://u:p@e.org:1/x/v1/responses?k=secret", "POST", {"user-agent": "u"}, {}, at_us=1, body=b"")
    assert (made.path, made.backend, made.user_agent) == ("/v1/responses", "e.org:1", "u")
