"""Files that are there whole or not at all: rows go to a temporary file beside the target, which takes its name at the end."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import orjson

from llmtap.core.errors import LlmtapError

_BUFFER = 1 << 20
_SYNCED = 32 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file. `sha256`: of its bytes."""

    name: str
    rows: int
    bytes: int
    sha256: str


class Target(Protocol):
    """What takes rows. `finish` makes the file appear, `abandon` leaves nothing behind (after `finish`: does nothing)."""

    def write(self, row: Mapping[str, Any]) -> None: ...

    def finish(self) -> Written: ...

    def abandon(self) -> None: ...


class Placed:
    """A temporary file beside `path` and its way to that name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # what was said in there is nobody else's business
            self.file = FileIO(os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        except OSError as error:
            raise _trouble(path, error) from error
        self._done = False

    def write(self, data: bytes) -> None:
        """All of it. Raises OSError."""
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) :]

    def place(self) -> None:
        """Flushed to the disk, then renamed."""
        try:
            if not self.file.closed:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
            os.replace(self.temporary, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _trouble(self.path, error) from error
        self._done = True

    def abandon(self) -> None:
        """Nothing stays."""
        if not self._done:
            with suppress(OSError):
                self.file.close()
            self.temporary.unlink(missing_ok=True)


class Lines:
    """JSON lines."""

    def __init__(self, path: Path) -> None:
        self._placed = Placed(path)
        self._hash = hashlib.sha256()
        self._rows = self._bytes = 0
        self._waiting: list[bytes] = []
        self._size = 0
        # hashing and writing need no Python: another row is made meanwhile
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row. Raises LlmtapError when the disk does not take it."""
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        self._waiting.append(line)
        self._rows += 1
        self._size += len(line)
        if self._size >= _BUFFER:
            self._flush()

    def finish(self) -> Written:
        """The file is there."""
        self._flush()
        self._settle()
        self._thread.shutdown()
        self._placed.place()
        return Written(str(self._placed.path), self._rows, self._bytes, self._hash.hexdigest())

    def abandon(self) -> None:
        """It never was."""
        self._thread.shutdown()
        self._placed.abandon()

    def _flush(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        self._settle()
        self._under_way = self._thread.submit(self._store, data)

    def _settle(self) -> None:
        """Waits for the last piece: there is never more than one on its way. Raises LlmtapError."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def _store(self, data: bytes) -> None:
        self._hash.update(data)
        before, self._bytes = self._bytes, self._bytes + len(data)
        try:
            self._placed.write(data)
            if before // _SYNCED != self._bytes // _SYNCED:
                os.fdatasync(self._placed.file.fileno())  # in small pieces while rows are made, not in one at the end
        except OSError as error:
            raise _trouble(self._placed.path, error) from error


class Printed:
    """JSON lines on standard output."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._rows = self._bytes = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Prints a row."""
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        sys.stdout.buffer.write(line)
        self._hash.update(line)
        self._rows += 1
        self._bytes += len(line)

    def finish(self) -> Written:
        """All is out."""
        sys.stdout.buffer.flush()
        return Written("-", self._rows, self._bytes, self._hash.hexdigest())

    def abandon(self) -> None:
        """What is printed is printed."""


def hash_of(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, path.stat().st_size


def _trouble(path: Path, error: OSError) -> LlmtapError:
    return LlmtapError(f"{path}: cannot be written: {error.strerror or error}")
