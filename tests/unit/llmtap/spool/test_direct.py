"""Segments written past the page cache: ordinary lines in whole blocks, on any file system, all or nothing."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from llmtap.core.errors import SpoolError
from llmtap.spool import direct
from llmtap.spool.direct import DirectWriter
from llmtap.spool.reader import read
from llmtap.spool.segment import scan


def records(directory: Path) -> list[bytes]:
    found = [r for segment in scan(directory) for _, r in read(directory / segment.filename)]
    assert all(isinstance(r, bytes) for r in found), found
    return [r.rstrip() for r in found if isinstance(r, bytes)]


def test_lines_fill_blocks_and_read_like_any_other(tmp_path: Path) -> None:
    writer = DirectWriter(tmp_path, "w", "b.long", 10_000_000)
    sent = [b'{"n":"%b"}' % (b"x" * size) for size in (1, 4_080, 4_096, 250_000, 1 << 20, 3_500_000)]
    for json in sent:
        assert writer.append(json) % 4096 == 0
        assert writer.path.stat().st_size == writer.size
    assert records(tmp_path) == sent
    writer.sync()
    writer.close()


def test_records_in_parts_are_a_line_each(tmp_path: Path) -> None:
    writer = DirectWriter(tmp_path, "w", "b.long", 10_000_000)
    written = writer.append_group([(b'{"a":', b"1" * 200_000, b"}"), (b"{}",)])
    assert written == writer.size == writer.path.stat().st_size
    assert records(tmp_path) == [b'{"a":' + b"1" * 200_000 + b"}", b"{}"]
    with pytest.raises(ValueError, match="one line"):
        writer.append_group([(b"{}",), (b"{", b"\n", b"}")])
    assert len(records(tmp_path)) == 2, "all or none"
    writer.close()


@pytest.mark.skipif(not direct._DIRECT, reason="there is no O_DIRECT here")
def test_past_the_cache_where_the_file_system_can(tmp_path: Path) -> None:
    writer = DirectWriter(tmp_path, "w", "b.long", 10_000_000)
    assert fcntl.fcntl(writer._fd, fcntl.F_GETFL) & direct._DIRECT
    assert fcntl.fcntl(writer._fd, fcntl.F_GETFL) & os.O_APPEND
    writer.close()


def test_into_the_cache_where_it_cannot(tmp_path: Path) -> None:
    """Some take the flag and refuse the write."""
    refused = 0

    def write(fd: int, data: memoryview) -> int:
        nonlocal refused
        if direct._DIRECT and fcntl.fcntl(fd, fcntl.F_GETFL) & direct._DIRECT:
            refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.write(fd, data)

    writer = DirectWriter(tmp_path, "w", "b.long", 10_000_000, write=write)
    for json in (b'{"n":1}', b'{"n":2}'):
        writer.append(json)
    assert records(tmp_path) == [b'{"n":1}', b'{"n":2}'] and refused == (1 if direct._DIRECT else 0)
    writer.close()


def test_a_full_disk_keeps_nothing_of_the_record(tmp_path: Path) -> None:
    room = 2

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        room -= 1
        return os.write(fd, data if room >= 0 else data[:4096])

    writer = DirectWriter(tmp_path, "w", "b.long", 10_000_000, write=write)
    writer.append(b'{"n":1}')
    with pytest.raises(SpoolError, match="No space left"):
        writer.append(b'"' + b"x" * 1_500_000 + b'"')
    room = 10
    writer.append(b'{"n":2}')
    assert records(tmp_path) == [b'{"n":1}', b'{"n":2}']
    writer.close()


def test_segments_follow_each_other(tmp_path: Path) -> None:
    writer = DirectWriter(tmp_path, "w", "b.long", 20_000)
    for n in range(5):
        writer.append(b'{"n":%d}' % n)
    assert len(scan(tmp_path)) == 3 and all(size <= 20_000 for size in scan(tmp_path).values())
    assert records(tmp_path) == [b'{"n":%d}' % n for n in range(5)]
    writer.close()
