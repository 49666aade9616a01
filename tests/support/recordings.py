"""Recorded exchanges of real servers (fixtures/recordings) as Python objects.

`NAME.req` and `NAME.resp` are raw HTTP/1.1, headers and framing included; `NAME.json` has the times of each read.
A few recordings were made without keeping the request or the times.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2] / "fixtures" / "recordings"


@dataclass(frozen=True)
class Recording:
    """One exchange. `chunks` are the body's pieces as the server framed them (one piece when it was not chunked);
    `complete` is false when the body's own end (last chunk, content-length) never came."""

    name: str
    request_line: str
    request_headers: dict[str, str]
    request_body: bytes
    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes]
    complete: bool

    @property
    def path(self) -> str:
        """The request's target, or "" when the request was not kept."""
        return self.request_line.split(" ")[1] if self.request_line else ""

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")


def names() -> list[str]:
    """All recordings, as `engine/name`."""
    return sorted(str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("*/*.resp"))


def load(name: str) -> Recording:
    """The recording `engine/name`."""
    request = ROOT / f"{name}.req"
    first, sent, request_body = _split(request.read_bytes()) if request.exists() else ("", {}, b"")
    status_line, headers, rest = _split((ROOT / f"{name}.resp").read_bytes())
    if headers.get("transfer-encoding") == "chunked":
        chunks, complete = _unchunk(rest)
    else:
        chunks = [rest] if rest else []
        complete = "content-length" not in headers or len(rest) == int(headers["content-length"]) or first.startswith("HEAD")
    return Recording(name, first, sent, request_body, int(status_line.split(" ")[1]), headers, b"".join(chunks), chunks, complete)


def _split(raw: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return first, headers, body


def _unchunk(raw: bytes) -> tuple[list[bytes], bool]:
    chunks: list[bytes] = []
    at = 0
    while True:
        line_end = raw.find(b"\r\n", at)
        if line_end < 0:
            return chunks, False
        size = int(raw[at:line_end].split(b";")[0], 16)
        at = line_end + 2
        if size == 0:
            return chunks, True
        piece = raw[at : at + size]
        chunks.append(piece)
        if len(piece) < size:
            return chunks, False
        at += size + 2
