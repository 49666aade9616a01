"""The inputs worth keeping: `fixtures/fuzz/`, one small file each, raw bytes.

`request-<class>-<how it ends>.bin`   what a client sends; the smallest seen of its class and its end by the reference
`reply-<...>.bin`                     what a backend sends
`found-*.bin`, `found-reply-*.bin`    what the lane once got wrong: never removed
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "fixtures" / "fuzz"
_SMALL = 2048


class Corpus:
    """What is on disk, and what a run has come across. Nothing is written until `save`."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._found: dict[str, bytes] = {}

    def requests(self) -> dict[str, bytes]:
        return {p.stem: p.read_bytes() for p in sorted(self.folder.glob("*.bin")) if "reply-" not in p.name}

    def replies(self) -> dict[str, bytes]:
        return {p.stem: p.read_bytes() for p in sorted(self.folder.glob("*reply-*.bin"))}

    def offer(self, what: str, data: bytes) -> None:
        """Kept when it is the smallest of its kind."""
        if len(data) <= _SMALL and (what not in self._found or len(data) < len(self._found[what])):
            self._found[what] = data

    def failed(self, what: str, data: bytes) -> str:
        """Something the lane gets wrong: written at once. The file's name."""
        name = f"found-{'reply-' if what == 'reply' else ''}{hashlib.sha256(data).hexdigest()[:12]}.bin"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        return name

    def save(self) -> int:
        """Writes what is new in kind. How many files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = 0
        for what, data in self._found.items():
            path = self.folder / (re.sub(r"[^a-z0-9.]+", "-", what.lower()).strip("-") + ".bin")
            if not path.exists():
                path.write_bytes(data)
                new += 1
        return new
