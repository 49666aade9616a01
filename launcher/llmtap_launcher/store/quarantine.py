"""`<dir>/quarantine.jsonl`: spool lines that could not be stored, whole, with the reason: for a person to look at.

Append-only and bounded: past its limit lines are only counted. It never stands in the writer's way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

MAX_BYTES = 64_000_000
MAX_LINE = 1_000_000
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not in the database. `end`: its end in the segment, bytes."""

    segment: str
    end: int
    reason: str
    line: bytes


class Quarantine:
    """Appends bad lines, each once: a batch that is tried again brings them again."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "quarantine.jsonl"
        self._seen: set[tuple[str, int]] = set()

    def add(self, lines: Iterable[BadLine], at: str) -> None:
        """Writes the lines not written before. `at`: the time, as text. Raises nothing for disk trouble."""
        fresh = [line for line in lines if (line.segment, line.end) not in self._seen]
        if not fresh:
            return
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        self._seen.update((line.segment, line.end) for line in fresh)
        with suppress(OSError), open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            for line in fresh:
                if file.tell() >= MAX_BYTES:
                    return
                text = line.line[:MAX_LINE].decode("utf-8", "replace")
                entry = {"at": at, "segment": line.segment, "end": line.end, "reason": line.reason, "line": text}
                file.write(orjson.dumps(entry) + b"\n")
