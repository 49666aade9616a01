"""Appends records to segment files: one write a record, so that a killed worker leaves whole records.

What a return from `append` promises: the record is in the kernel, it survives the death of this process. It survives a
power cut once `sync()` has run, which is meant for a thread (every 500 ms): a disk may take its time, an event loop not.
The lock on the open segment is how a reader knows that its worker lives.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llmtap.core.errors import SpoolError
from llmtap.spool.frame import frame, header
from llmtap.spool.segment import Segment, lock, parse_name, scan

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
#: how long a segment that somebody has removed may go unnoticed, in seconds
_LOOK_S = 0.02
#: full segments kept open until `sync()` has flushed them; beyond that the kernel flushes them in its own time
_MAX_RETIRED = 4
#: a longer record is written from where it is: copying it would cost more than a system call with three parts does
_LONG = 32_768


def spool_error(directory: Path, error: OSError) -> SpoolError:
    """One line: the folder, what the system said, how to mend it. The OSError stays its cause."""
    mend = {
        errno.EACCES: "make it writable for this user, or set capture.dir",
        errno.EPERM: "make it writable for this user, or set capture.dir",
        errno.EROFS: "the file system is read-only: set capture.dir",
        errno.ENOSPC: "free some disk space",
        errno.EDQUOT: "free some of the disk quota",
        errno.EFBIG: "raise the file size limit (ulimit -f)",
        errno.ENOTDIR: "a file is in the way: set capture.dir",
        errno.EEXIST: "a file is in the way: set capture.dir",
    }.get(error.errno or 0, "set capture.dir to a folder on a local disk")
    raised = SpoolError(f"cannot write the capture log in {directory}: {error.strerror or error}: {mend}")
    raised.__cause__ = error
    return raised


class SegmentWriter:
    """The segments of one worker boot. Not for use by several threads at once, except `sync()`.

    Raises SpoolError when the folder cannot be used, at construction and from `append`; a failed append leaves the
    segment as it was, and the next one tries again (and makes a new segment, or the folder, where they are gone).
    Raises ValueError for a worker or boot that cannot stand in a file name.
    """

    def __init__(
        self,
        directory: Path,
        worker: str,
        boot: str,
        segment_bytes: int,
        *,
        write: Callable[[int, bytes], int] = os.write,
        writev: Callable[[int, Sequence[bytes]], int] = os.writev,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        first = Segment(worker, boot, 1)
        if parse_name(first.filename) != first:
            raise ValueError(f"not usable in a file name: worker {worker!r}, boot {boot!r}")
        self.directory = directory
        self.worker = worker
        self.boot = boot
        self._segment_bytes = segment_bytes
        self._write, self._writev = write, writev
        self._clock = clock
        self._look_at = 0.0
        self._guard = threading.Lock()  # held for moments, never over a disk access: the loop takes it too
        self._fd = -1
        self._size = 0
        self._seq = 0
        self._retired: list[int] = []
        self._folder_changed = False
        self._reopen = False
        self._open_next()

    @property
    def path(self) -> Path:
        """The segment being written."""
        return self.directory / Segment(self.worker, self.boot, self._seq).filename

    @property
    def size(self) -> int:
        """Bytes in the segment being written."""
        return self._size

    def append(self, json: bytes) -> int:
        """Writes one record and returns its bytes on disk. All or nothing: SpoolError means that nothing was kept."""
        if len(json) < _LONG:
            line = frame(json)
            return self._append(len(line), (line,))
        head = header(json)
        return self._append(len(head) + len(json) + 1, (head, json, b"\n"))

    def _append(self, size: int, line: Sequence[bytes]) -> int:
        """Appends a line of `size` bytes that comes in parts."""
        if self._size + size > self._segment_bytes or self._clock() >= self._look_at or self._reopen:
            self._ready(size)
        try:
            if self._put(line) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # how a full disk shows first
        except OSError as error:
            self._take_back()
            raise spool_error(self.directory, error) from error
        self._size += size
        return size

    def _put(self, line: Sequence[bytes]) -> int:
        """Writes a line at the end of the segment; returns how much of it there was room for."""
        return self._write(self._fd, line[0]) if len(line) == 1 else self._writev(self._fd, line)

    def _opened(self, fd: int) -> None:
        """A segment has been made."""

    def sync(self) -> None:
        """Flushes to the disk what was appended so far. For a thread. Raises SpoolError when the disk refuses."""
        with self._guard:
            retired, self._retired = self._retired, []
            current = os.dup(self._fd) if self._fd >= 0 else -1
            folder_changed, self._folder_changed = self._folder_changed, False
            path = self.path
        todo = [*retired, current] if current >= 0 else retired
        try:
            for fd in todo:
                os.fdatasync(fd)
            if folder_changed:
                _sync_folder(self.directory)
            if current >= 0 and not _is_at(current, path):
                self._reopen = True  # the folder was moved or replaced under us: the next append starts afresh
        except OSError as error:
            raise spool_error(self.directory, error) from error
        finally:
            for fd in todo:
                os.close(fd)

    def close(self) -> None:
        """Releases the segment. An empty one is removed, a worker without traffic leaves nothing behind."""
        with self._guard:
            fds, self._retired, current, self._fd = self._retired, [], self._fd, -1
        if current >= 0:
            if self._size == 0 and _is_at(current, self.path):
                self.path.unlink(missing_ok=True)
            os.close(current)
        for fd in fds:
            os.close(fd)

    def _ready(self, size: int) -> None:
        self._look_at = self._clock() + _LOOK_S
        if self._fd >= 0 and not self._reopen and os.fstat(self._fd).st_nlink > 0:
            if self._size == 0 or self._size + size <= self._segment_bytes:
                return
            try:
                self._open_next()
            except SpoolError:
                return  # no room for another file is no reason to lose records: the old one grows on
            return
        self._open_next()

    def _open_next(self) -> None:
        """Creates and locks the next segment, then lets the old one go: in between both are ours, never none."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            taken = max((s.seq for s in scan(self.directory) if s[:2] == (self.worker, self.boot)), default=0)
            seq = max(self._seq, taken)
            while True:
                seq += 1
                fd = os.open(self.directory / Segment(self.worker, self.boot, seq).filename, _FLAGS, 0o600)
                try:
                    # a reader may have adopted (and removed) the file in the moment before it was locked
                    ours = lock(fd) and os.fstat(fd).st_nlink > 0
                except OSError:
                    os.close(fd)
                    raise
                if ours:
                    break
                os.close(fd)
        except OSError as error:
            raise spool_error(self.directory, error) from error
        self._opened(fd)
        with self._guard:
            old, self._fd, self._seq, self._size = self._fd, fd, seq, 0
            self._folder_changed, self._reopen = True, False
            if old >= 0:
                self._retired.append(old)
            surplus = self._retired.pop(0) if len(self._retired) > _MAX_RETIRED else -1
        if surplus >= 0:
            os.close(surplus)

    def _take_back(self) -> None:
        self._look_at = 0.0
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._reopen = True  # a torn line stays at the end of this segment: nothing may follow it


def _is_at(fd: int, path: Path) -> bool:
    try:
        there, here = os.stat(path), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _sync_folder(directory: Path) -> None:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
