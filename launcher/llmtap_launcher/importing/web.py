"""Recorded HTTP as exchanges: what HAR and flow files have in common."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import zstandard

from llmtap.core.endpoints import canonical_path, endpoint_of
from llmtap_launcher.importing.entries import Entry, Malformed

#: a decompressed body may not be larger
_MOST = 256_000_000


class NotInference(Exception):
    """A request to something else: passed over, not a mistake."""


def entry(
    source: str,
    ident: str,
    url: str,
    method: str,
    asked: Mapping[str, str],
    answered: Mapping[str, str],
    **more: Any,
) -> Entry:
    """An exchange out of recorded HTTP. `asked`, `answered`: the headers, lower-case names. Raises NotInference, Malformed."""
    parts = urlsplit(url)
    path = inference_path(parts.path)
    if path is None or method != "POST":
        raise NotInference
    return Entry(
        identity=f"{source} {ident}",
        path=path,
        method=method,
        content_type=answered.get("content-type", ""),
        user_agent=asked.get("user-agent"),
        session_hint=asked.get("x-session-id"),
        request_id=answered.get("x-request-id") or asked.get("x-request-id"),
        backend=parts.netloc.rpartition("@")[2] or None,
        **more,
    )


def inference_path(path: str) -> str | None:
    """The inference route a path ends in (services put their API under prefixes)."""
    found = canonical_path(path)
    while found:
        endpoint = endpoint_of(found)
        if endpoint is not None and endpoint.json_body:
            return found
        at = found.find("/", 1)
        found = found[at:] if at > 0 else ""
    return None


def decoded(body: bytes, encoding: str | None) -> bytes:
    """A body without its content encoding. Raises Malformed for one that is damaged or not known."""
    for name in reversed([part.strip().lower() for part in (encoding or "").split(",")]):
        if not body or name in ("", "identity"):
            continue
        try:
            if name in ("gzip", "x-gzip"):
                body = gzip.decompress(body)
            elif name == "deflate":
                body = zlib.decompress(body, 15 if body[:1] == b"\x78" else -15)
            elif name == "zstd":
                body = zstandard.ZstdDecompressor().stream_reader(body).read(_MOST)
            elif name == "br":
                import brotli  # comes with mitmproxy

                body = brotli.decompress(body)
            else:
                raise Malformed(f"content encoding {name}")
        except (OSError, EOFError, zlib.error, zstandard.ZstdError, ValueError) as error:
            raise Malformed(f"a body that is no {name}") from error
        except ImportError as error:
            raise Malformed("content encoding br (pip install brotli)") from error
        except Exception as error:
            if type(error).__module__ == "brotli":  # its one exception, which has no name without it
                raise Malformed("a body that is no br") from error
            raise
    return body
