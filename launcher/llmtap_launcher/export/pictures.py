"""Pictures of exported conversations: as data URLs in place, or as files in a folder beside the export."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
import sqlite3
from hashlib import blake2b
from pathlib import Path

from llmtap_launcher.store.attachments import HASH_BYTES, reference

_DATA = re.compile(r"data:([^;,]*)[^,]*;base64,(.*)", re.DOTALL | re.IGNORECASE)
_MAGIC = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
_ENDINGS = {"image/jpeg": ".jpg", "image/png": ".png", "image/gif": ".gif", "image/webp": ".webp"}


class Pictures:
    """Answers with the URL of a picture. `folder`: where the files go; None: data URLs."""

    def __init__(self, conn: sqlite3.Connection, folder: Path | None = None, shown_as: str | None = None) -> None:
        self._cursor = conn.cursor()
        self._cursor.row_factory = None
        self._folder = folder
        self._shown_as = shown_as if shown_as is not None else str(folder)
        self._written: set[str] = set()

    @property
    def count(self) -> int:
        """Files written."""
        return len(self._written)

    def url(self, value: str, body: int, mime: str | None = None) -> str | None:
        """The URL for a picture of the message `body`: `value` is a URL, a reference to an attachment, or bare base64.

        None for a reference whose attachment is gone.
        """
        found = reference(value)
        if found is not None:
            row = self._cursor.execute(
                "SELECT a.content, a.mime FROM attachments a JOIN body_attachments b ON b.hash = a.hash "
                "WHERE b.body_id = ? AND a.hash = ?",
                (body, found[0]),
            ).fetchone()
            if row is None:
                return None
            content, mime = bytes(row[0]), row[1] or mime
            if self._folder is None and found[1].startswith("data:"):
                return found[1] + base64.b64encode(content).decode()
            return self._placed(content, mime, found[0].hex())
        if re.match(r"https?:", value, re.IGNORECASE) or (self._folder is None and value.startswith("data:")):
            return value
        data = _DATA.match(value)
        try:
            content = base64.b64decode(data[2] if data else value, validate=True)
        except (binascii.Error, ValueError):
            return value if data or ":" in value else None
        return self._placed(content, (data[1] if data else mime) or mime, None)

    def _placed(self, content: bytes, mime: str | None, name: str | None) -> str:
        mime = mime or next((kind for magic, kind in _MAGIC if content.startswith(magic)), None)
        if mime is None:
            mime = "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else "application/octet-stream"
        if self._folder is None:
            return f"data:{mime};base64,{base64.b64encode(content).decode()}"
        name = name or blake2b(content, digest_size=HASH_BYTES).hexdigest()
        name += _ENDINGS.get(mime) or mimetypes.guess_extension(mime) or ".bin"
        if name not in self._written:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(content)
            self._written.add(name)
        return f"{self._shown_as}/{name}"
