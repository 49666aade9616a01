"""Segment files: their names, their order and the lock that says whether their worker lives.

`<worker>-<boot>-<seq>.jsonl`: `boot` is new at every start of a worker, `seq` counts its files. A segment is final
(nobody will append to it again) when the same worker and boot has a higher one, or when its lock can be taken.
The long records of a boot are in files of their own, `<worker>-<boot>.long-<seq>.jsonl`: the other half of an exchange is in
the other kind.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"(?P<worker>[A-Za-z0-9_.][A-Za-z0-9_.-]*)-(?P<boot>[A-Za-z0-9_.]+)-(?P<seq>[0-9]{6,})\.jsonl")


LONG = ".long"


class Segment(NamedTuple):
    """A segment's name, taken apart. Sorts by worker, boot and sequence."""

    worker: str
    boot: str
    seq: int

    @property
    def filename(self) -> str:
        return f"{self.worker}-{self.boot}-{self.seq:06d}.jsonl"

    @property
    def run(self) -> str:
        """The worker's start, the same for its long records."""
        return f"{self.worker}-{self.boot.removesuffix(LONG)}"


def parse_name(filename: str) -> Segment | None:
    """The segment a file name stands for; None for files that are none of ours."""
    match = _NAME.fullmatch(filename)
    if match is None:
        return None
    segment = Segment(match["worker"], match["boot"], int(match["seq"]))
    return segment if segment.filename == filename else None


def scan(directory: Path) -> dict[Segment, int]:
    """All segments of a spool folder with their sizes in bytes, in reading order. A missing folder is an empty one."""
    found: dict[Segment, int] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                segment = parse_name(entry.name)
                if segment is None:
                    continue
                try:
                    found[segment] = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue  # deleted since: read and done
    except FileNotFoundError:
        return {}
    return dict(sorted(found.items()))


def lock(fd: int) -> bool:
    """Takes a segment's lock without waiting. False when somebody holds it. The lock ends with the process or the file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def adopted(path: Path) -> Iterator[bool]:
    """True when the segment's worker is gone; its lock is then held inside the block, so that no one else adopts it.

    A worker that has created its file and not yet locked it finds the lock taken and goes on to its next number.
    A missing file counts as adopted: there is nobody to wait for.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        yield lock(fd)
    finally:
        os.close(fd)
