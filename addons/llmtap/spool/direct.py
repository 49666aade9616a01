"""Segments written past the page cache: for records so long that finding pages for them costs more than writing them.

Appending 250 kB to a file takes some sixty new pages of memory, which the log never needs again and everything else on the
machine would have to make room for; where a virtual machine gives free memory back to its host, each is a fault there (measured:
460 us of CPU, 45 us this way). A write waits for the disk instead: it is for a thread (`long.py`).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from llmtap.spool.frame import block_header
from llmtap.spool.writer import SegmentWriter

#: what O_DIRECT asks of addresses, offsets and sizes: the largest logical block there is, and a page
_BLOCK = 4096
#: how much is written at a time
_BUFFER = 1 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it


class DirectWriter(SegmentWriter):
    """A SegmentWriter whose lines fill whole blocks. On a file system that cannot write past the cache it writes into it."""

    def __init__(
        self, directory: Path, worker: str, boot: str, segment_bytes: int, *, write: Callable[[int, memoryview], int] = os.write
    ) -> None:
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER))  # at the beginning of a page
        self._write_block = write
        super().__init__(directory, worker, boot, segment_bytes)

    def append(self, json: bytes) -> int:
        """As `SegmentWriter.append`; waits for the disk."""
        return self.append_group([(json,)])

    def append_group(self, records: Sequence[Sequence[bytes]]) -> int:
        """`append` for several records at once, each in parts: all of them are kept, or none."""
        lines: list[bytes] = []
        for json in records:
            head, spaces = block_header(json, _BLOCK)
            lines += (head, *json, b" " * spaces + b"\n")
        return self._append(sum(map(len, lines)), lines)

    def _opened(self, fd: int) -> None:
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND | _DIRECT)

    def _put(self, line: Sequence[bytes]) -> int:
        try:
            return self._put_blocks(line)
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(self._fd, fcntl.F_GETFL) & _DIRECT:
                raise
        fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_APPEND)
        os.ftruncate(self._fd, self._size)
        return self._put_blocks(line)

    def _put_blocks(self, parts: Sequence[bytes]) -> int:
        buffer, filled, written = self._buffer, 0, 0
        for part in parts:
            rest = memoryview(part)
            while rest:
                n = min(len(rest), _BUFFER - filled)
                buffer[filled : filled + n] = rest[:n]
                filled, rest = filled + n, rest[n:]
                if filled == _BUFFER:
                    written += self._write_block(self._fd, buffer)
                    filled = 0
        return written + self._write_block(self._fd, buffer[:filled]) if filled else written
