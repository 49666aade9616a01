"""Images, audio and files inside messages: kept once in `attachments`, with a reference where they were.

A client resends every picture with every turn, base64 in JSON. In the stored message such a value becomes
`attachment:<hash>:<what stood before the base64>`; `restore` puts it back to the byte. What would not come back exactly
stays where it is. Hashes of messages are made of the values themselves, so lifting changes no chain.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

HASH_BYTES = 16
#: shorter ones are not worth a row
MIN_CHARS = 512
PREFIX = "attachment:"

_DATA_URL = re.compile(r"data:([^;,\s]{0,100})(?:;[^;,\s]{0,100})*;base64,", re.IGNORECASE)
_REFERENCE = re.compile(rf"{PREFIX}([0-9a-f]{{{HASH_BYTES * 2}}}):(.*)", re.DOTALL)
#: where APIs put bare base64: OpenAI's input_audio, Anthropic's and Ollama's images
_BARE = frozenset({"data", "file_data"})
_MAGIC = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF", "application/pdf"),
    (b"RIFF", "audio/wav"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
)
_FORMATS = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg", "opus": "audio/ogg"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """One value lifted out. `mime` is what was said of it or what its first bytes say; None: neither says."""

    hash: bytes
    mime: str | None
    content: bytes


def lift(content: list[Any]) -> tuple[list[Any], tuple[Attachment, ...]]:
    """The parts of a message with references in place of what is lifted. Without any the very list comes back."""
    found: list[Attachment] = []
    parts = [_lifted(part, found) for part in content]
    return (parts, tuple(found)) if found else (content, ())


def restore(value: Any, load: Callable[[bytes], bytes | None]) -> Any:
    """The inverse, for any JSON value. `load` gives the content of a hash; what it does not know stays a reference."""
    if isinstance(value, str):
        return _restored(value, load)
    if isinstance(value, list):
        return [restore(item, load) for item in value]
    if isinstance(value, dict):
        return {key: restore(item, load) for key, item in value.items()}
    return value


def reference(value: Any) -> tuple[bytes, str] | None:
    """Hash and prefix of a reference; None for any other value."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) and value.startswith(PREFIX) else None
    return None if match is None else (bytes.fromhex(match[1]), match[2])


def _restored(value: str, load: Callable[[bytes], bytes | None]) -> str:
    found = reference(value)
    if found is None:
        return value
    content = load(found[0])
    return value if content is None else found[1] + base64.b64encode(content).decode("ascii")


def _lifted(value: Any, found: list[Attachment], key: str = "", around: Mapping[str, Any] | None = None) -> Any:
    if type(value) is str:
        return value if len(value) < MIN_CHARS else _lifted_text(value, found, key, around or {})
    if type(value) is dict:
        return {name: _lifted(item, found, name, value) for name, item in value.items()}
    if type(value) is list:
        return [_lifted(item, found, key, around) for item in value]
    return value


def _lifted_text(value: str, found: list[Attachment], key: str, around: Mapping[str, Any]) -> str:
    match = _DATA_URL.match(value)
    if match is None and key not in _BARE:
        return value
    prefix = match[0] if match else ""
    encoded = value[len(prefix) :]
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return value
    if base64.b64encode(content).decode("ascii") != encoded:
        return value
    digest = blake2b(content, digest_size=HASH_BYTES).digest()
    mime = (match[1].lower() if match else None) or _said(around) or _seen(content)
    found.append(Attachment(digest, mime, content))
    return f"{PREFIX}{digest.hex()}:{prefix}"


def _said(around: Mapping[str, Any]) -> str | None:
    told = around.get("media_type") or around.get("mime_type")
    if type(told) is str and told:
        return told[:100].lower()
    told = around.get("format")
    return _FORMATS.get(told) if type(told) is str else None


def _seen(content: bytes) -> str | None:
    return next((mime for magic, mime in _MAGIC if content.startswith(magic)), None)
