"""The writer's lock: who holds it is the one process that may write to the capture database of a folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from llmtap.core.errors import LlmtapError


class WriterLock:
    """`<dir>/writer.lock`, held until `release` or the end of the process. The file names the holder's process id."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "writer.lock"
        self._fd = -1

    def acquire(self) -> bool:
        """Takes the lock without waiting; False while another process has it. Raises OSError for an unusable folder."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def holder(self) -> int | None:
        """The process id in the file, of whoever holds the lock or held it last."""
        try:
            return int(self.path.read_text())
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Lets go. The file stays: removing it would let two processes lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def acquired(lock: WriterLock) -> bool:
    """`lock.acquire()` for commands: raises LlmtapError for an unusable folder."""
    try:
        return lock.acquire()
    except OSError as error:
        raise LlmtapError(f"{lock.path}: {error.strerror}: make the folder writable for this user") from error
