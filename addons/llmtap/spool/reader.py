"""Reads a spool segment from an offset, also while it is being written.

Never raises for what is in the file: a damaged line comes out as `Bad` and reading goes on behind the next line feed.
A last line without its line feed is a write in progress (or the last breath of a killed worker): reading stops before it,
and the caller, who knows whether the segment is final, waits or gives it up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llmtap.spool.frame import Bad, unframe

#: one read of this size, whatever the record's own size
_BUFFER = 1 << 20


def read(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes | Bad]]:
    """Yields `(end_offset, json | Bad)` for every complete line behind `offset` (bytes).

    `end_offset` is where the next read goes on. A missing file or an offset beyond the end yields nothing: both mean
    that the segment is done. Raises OSError only when the file exists and cannot be read.
    """
    with suppress(FileNotFoundError), open(path, "rb", buffering=_BUFFER) as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, unframe(line)
