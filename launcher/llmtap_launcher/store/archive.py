"""Finished spool files, compressed, in `<dir>/archive`: from them the database can be made again (`llmtap ingest --rebuild`).

`zstd -dc FILE | cut -d' ' -f3-` gives their records as JSON lines. An agent's requests resend their history, so a file shrinks
to a fraction; the window spans the whole file for that.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import zstandard

from llmtap.spool.segment import Segment, parse_name

SUFFIX = ".zst"
_WINDOW_LOG = 27  # 128 MiB: as far as zstd looks back without being asked to
_DAY_S = 86_400.0


class Archive:
    """The archive of one capture folder."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "archive"

    def add(self, path: Path) -> Path:
        """Compresses a segment into the archive, durably; the segment itself stays. Raises OSError when it cannot."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self.folder / (path.name + SUFFIX)
        temporary = target.with_suffix(".tmp")
        parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=_WINDOW_LOG, enable_ldm=True)
        try:
            with (
                open(path, "rb") as source,
                open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as sink,
            ):
                zstandard.ZstdCompressor(compression_params=parameters).copy_stream(source, sink, size=path.stat().st_size)
                sink.flush()
                os.fsync(sink.fileno())
            written = path.stat().st_mtime  # says how old the records are
            os.utime(temporary, (written, written))
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return target

    def segments(self) -> dict[Segment, Path]:
        """What is there, the oldest worker boot first, each boot's files in their order."""
        found: dict[Segment, Path] = {}
        age: dict[tuple[str, str], float] = {}
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                segment = parse_name(path.name.removesuffix(SUFFIX)) if path.name.endswith(SUFFIX) else None
                if segment is not None:
                    found[segment] = path
                    age[segment[:2]] = min(age.get(segment[:2], float("inf")), path.stat().st_mtime)
        return {segment: found[segment] for segment in sorted(found, key=lambda s: (age[s[:2]], s))}

    def expire(self, before: float) -> int:
        """Deletes what was last written to before `before` (seconds since the epoch); returns how many files."""
        gone = 0
        for path in self.segments().values():
            with suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    gone += 1
        return gone


def unpack(path: Path, folder: Path) -> Path:
    """The segment of an archived file, in `folder`. Raises OSError, or zstandard.ZstdError for a damaged file (what of it can be
    read is there then)."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / path.name.removesuffix(SUFFIX)
    with open(path, "rb") as source, open(target, "wb") as sink:
        zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).copy_stream(source, sink)
    return target


def cutoff(now: float, days: float) -> float:
    """The time `days` ago."""
    return now - days * _DAY_S
