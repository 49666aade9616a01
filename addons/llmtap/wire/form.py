"""Text fields of multipart/form-data, read while the form arrives: audio uploads name their model in one.

No file is ever kept: of the bytes between two delimiters only what a delimiter may need is looked at again. Sources: RFC 7578,
RFC 2046 5.1; vLLM reads forms with python-multipart, where the last of several fields of one name counts, so a second `model` is
an error here: what was allowed and routed must be what the engine sees.
"""

from __future__ import annotations

import re

from llmtap.core.errors import WireError
from llmtap.wire.request import ParsedRequest

#: headers of one part
MAX_HEAD = 16 << 10
#: value of a field that is wanted
MAX_VALUE = 8 << 10
_MAX_BOUNDARY = 256
_PARAMETER = re.compile(r';\s*(?P<name>[A-Za-z0-9_*-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^;\s"]+))')
_TRUE = frozenset(("true", "1", "yes", "on", "t", "y"))  # what pydantic takes for true
#: fields that are read
WANTED = frozenset(("model", "stream"))


def boundary_of(content_type: str) -> bytes | None:
    """The boundary a `multipart/form-data` content type announces; None for other types and for none."""
    kind, _, _ = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    boundary = _parameters(content_type).get("boundary", "")
    return boundary.encode("latin-1", "replace") if 0 < len(boundary) <= _MAX_BOUNDARY else None


class FormScanner:
    """`feed` the form in any pieces; `fields` has the wanted ones that are complete. Parts with a file name are skipped.

    What is no form any more (a part without an end to its headers, an endless value) ends the scan: the engine will say so.
    """

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.ended = False
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first delimiter may stand at the very beginning
        self._in_head = False
        self._name: str | None = None  # of the wanted field whose value is being read

    def feed(self, data: bytes) -> bool:
        """True when the model is known, or nothing more can be learned. Raises WireError for a field given twice."""
        if not self.ended:
            self._buffer += data
            while not self.ended and (self._head() if self._in_head else self._content()):
                pass
        return self.ended or "model" in self.fields

    def _content(self) -> bool:
        """Of a part, or what comes before the first: up to a delimiter. True when one was found."""
        buffer, size = self._buffer, len(self._delimiter)
        at = buffer.find(self._delimiter)
        while at >= 0 and len(buffer) >= at + size + 2:
            behind = bytes(buffer[at + size : at + size + 2])
            if behind not in (b"--", b"\r\n") and behind[:1] not in (b" ", b"\t"):
                at = buffer.find(self._delimiter, at + 1)  # some other text that begins the same
                continue
            if self._name is not None:
                self._found(self._name, bytes(buffer[:at]))
            self.ended = behind == b"--"
            self._name = None
            self._in_head = True
            del buffer[: at + size]
            return True
        if self._name is None:
            del buffer[: at if at >= 0 else max(0, len(buffer) - size)]
        elif len(buffer) > MAX_VALUE + size:
            self.ended = True
        return False

    def _head(self) -> bool:
        """The rest of a delimiter's line and the part's headers."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            self.ended = len(buffer) > MAX_HEAD
            return False
        name = name_of(bytes(buffer[:end]))
        self._name = name if name in WANTED else None
        self._in_head = False
        del buffer[: end + 4]
        return True

    def _found(self, name: str, value: bytes) -> None:
        text = value.decode("utf-8", "replace")
        if name in self.fields:
            raise WireError(f"`{name}` is given twice")
        self.fields[name] = text


def name_of(head: bytes) -> str | None:
    """The field's name; None for a file, and for a part without a name."""
    for line in head.split(b"\r\n"):
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            found = _parameters(value.decode("utf-8", "replace"))
            return None if "filename" in found or "filename*" in found else found.get("name")
    return None


def _parameters(value: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for match in _PARAMETER.finditer(value):
        quoted = match["quoted"]
        out[match["name"].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match["plain"]
    return out


def request_of(endpoint: str, fields: dict[str, str]) -> ParsedRequest:
    """What the fields of a form ask for."""
    return ParsedRequest(
        endpoint=endpoint,
        obj={},
        exact=False,
        model=fields.get("model") or None,
        stream=fields.get("stream", "").strip().lower() in _TRUE,
    )
