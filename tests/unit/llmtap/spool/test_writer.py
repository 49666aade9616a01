"""The segment writer: whole records or none, rotation under lock, healing when the folder is mended."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from llmtap.core.errors import SpoolError
from llmtap.spool.frame import frame
from llmtap.spool.reader import read
from llmtap.spool.segment import Segment, adopted, scan
from llmtap.spool.writer import SegmentWriter


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SegmentWriter]:
    made = SegmentWriter(tmp_path / "spool", "w0", "boot", 100)
    yield made
    made.close()


def records(directory: Path) -> list[bytes]:
    return [r for segment in scan(directory) for _, r in read(directory / segment.filename) if isinstance(r, bytes)]


def test_appends_framed_lines_to_a_private_file(writer: SegmentWriter) -> None:
    assert writer.append(b'{"n":1}') == len(frame(b'{"n":1}'))
    assert writer.path.name == "w0-boot-000001.jsonl"
    assert writer.path.read_bytes() == frame(b'{"n":1}')
    assert writer.path.stat().st_mode & 0o077 == 0
    assert writer.directory.stat().st_mode & 0o077 == 0


def test_rotates_before_the_size_is_passed_and_keeps_order(writer: SegmentWriter) -> None:
    sent = [b'{"n":%d}' % n for n in range(20)]
    for json in sent:
        writer.append(json)
    assert all(size <= 100 for size in scan(writer.directory).values())
    assert len(scan(writer.directory)) > 1
    assert records(writer.directory) == sent


def test_one_large_record_has_a_segment_of_its_own(writer: SegmentWriter) -> None:
    for size in (10, 500, 10):
        writer.append(b"x" * size)
    assert [s.seq for s in scan(writer.directory)] == [1, 2, 3]


def test_the_next_segment_is_locked_before_the_old_one_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path, "w", "b", 10)
    writer.append(b"{}")
    seen: list[tuple[int, bool]] = []

    def watched(fd: int) -> bool:
        old = tmp_path / Segment("w", "b", 1).filename
        with adopted(old) as free:
            seen.append((fd, free))
        return True

    monkeypatch.setattr("llmtap.spool.writer.lock", watched)
    writer.append(b"{}")
    assert len(seen) == 1
    assert not seen[0][1]
    writer.close()


def test_a_file_adopted_before_it_was_locked_is_left_to_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True])
    monkeypatch.setattr("llmtap.spool.writer.lock", lambda fd: next(answers))
    writer = SegmentWriter(tmp_path, "w", "b", 10)
    assert writer.path.name == "w-b-000002.jsonl"
    writer.close()


def test_closing_lets_go_of_the_lock_and_removes_an_empty_file(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w", "b", 10)
    with adopted(writer.path) as free:
        assert not free
    writer.append(b"{}")
    writer.append(b"{}")
    writer.close()
    writer.close()
    with adopted(writer.path) as free:
        assert free
    SegmentWriter(tmp_path, "idle", "b", 10).close()
    assert [s.worker for s in scan(tmp_path)] == ["w", "w"]


def test_a_long_record_is_framed_like_any_other_and_as_whole(tmp_path: Path) -> None:
    room = 1 << 20

    def tight(fd: int, parts: Sequence[bytes]) -> int:
        return os.write(fd, b"".join(parts)[: max(0, room - os.fstat(fd).st_size)])

    writer = SegmentWriter(tmp_path, "w", "b", 10_000_000)
    long = [b'{"n":"%s"}' % (b"x" * size) for size in (32_700, 32_768, 40_000, 1_000_000)]
    assert [writer.append(json) for json in long] == [len(frame(json)) for json in long]
    assert writer.path.read_bytes() == b"".join(map(frame, long))
    with pytest.raises(ValueError, match="no line feed"):
        writer.append(b"x\n" * 50_000)
    writer.close()
    small = SegmentWriter(tmp_path, "w", "c", 10_000_000, writev=tight)
    small.append(long[-1])
    with pytest.raises(SpoolError, match="No space left"):
        small.append(long[-1])
    assert small.path.read_bytes() == frame(long[-1])
    small.close()


def test_a_short_write_is_taken_back(tmp_path: Path) -> None:
    room = 50

    def tight(fd: int, data: bytes) -> int:
        return os.write(fd, data[: max(0, room - os.fstat(fd).st_size)])

    writer = SegmentWriter(tmp_path, "w", "b", 1000, write=tight)
    writer.append(b'{"n":1}')
    before = writer.path.read_bytes()
    with pytest.raises(SpoolError, match="No space left on device: free some disk space") as caught:
        writer.append(b"x" * 100)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert writer.path.read_bytes() == before
    room = 1000
    writer.append(b'{"n":2}')
    assert records(tmp_path) == [b'{"n":1}', b'{"n":2}']
    writer.close()


def test_nothing_follows_a_torn_line_that_cannot_be_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = False

    def write(fd: int, data: bytes) -> int:
        return os.write(fd, data[:5] if full else data)

    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "no")

    writer = SegmentWriter(tmp_path, "w", "b", 1000, write=write)
    writer.append(b'{"n":1}')
    full = True
    with monkeypatch.context() as patched:
        patched.setattr("llmtap.spool.writer.os.ftruncate", refuse)
        with pytest.raises(SpoolError):
            writer.append(b'{"n":2}')
    full = False
    writer.append(b'{"n":3}')
    assert records(tmp_path) == [b'{"n":1}', b'{"n":3}']
    assert writer.path.name == "w-b-000002.jsonl"
    writer.close()


def test_no_room_for_another_file_lets_the_old_one_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path, "w", "b", 40)
    writer.append(b'{"n":1}')
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, mode)

    with monkeypatch.context() as patched:
        patched.setattr("llmtap.spool.writer.os.open", refuse)
        writer.append(b'{"n":%d}' % 10**30)
        assert len(scan(tmp_path)) == 1
    writer.append(b'{"n":3}')
    assert len(scan(tmp_path)) == 2
    assert len(records(tmp_path)) == 3
    writer.close()


def test_a_real_file_size_limit_is_met_with_whole_records(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from llmtap.core.errors import SpoolError
from llmtap.spool.writer import SegmentWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
writer = SegmentWriter(Path(sys.argv[1]), "w", "b", 1 << 20)
kept = 0
try:
    while True:
        writer.append(b"x" * 777)
        kept += 1
except SpoolError as error:
    print(kept, error)
writer.append(b"small")
writer.close()
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=env, check=True)
    kept = int(done.stdout.split()[0])
    assert records(tmp_path) == [b"x" * 777] * kept + [b"small"]
    assert sum(scan(tmp_path).values()) == sum(len(frame(r)) for r in records(tmp_path)), "no torn bytes left"


def test_a_deleted_folder_is_made_again(tmp_path: Path) -> None:
    now = [100.0]
    writer = SegmentWriter(tmp_path / "spool", "w0", "boot", 100, clock=lambda: now[0])
    writer.append(b"1")
    shutil.rmtree(writer.directory)
    now[0] += 0.05  # it is looked for some fifty times a second
    writer.append(b"2")
    assert records(writer.directory) == [b"2"]
    writer.close()


def test_a_moved_folder_is_noticed_at_the_next_sync(writer: SegmentWriter) -> None:
    writer.append(b"1")
    writer.directory.rename(writer.directory.parent / "old")
    writer.sync()
    writer.append(b"2")
    assert records(writer.directory) == [b"2"]
    assert records(writer.directory.parent / "old") == [b"1"]


def test_an_unusable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        SpoolError, match=r"cannot write the capture log in .*/file/spool: Not a directory: .* capture\.dir"
    ) as caught:
        SegmentWriter(tmp_path / "file" / "spool", "w", "b", 100)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("worker", "boot"), [("a/b", "c"), ("", "c"), ("w", ""), ("w", "a-b"), ("w", "a b")])
def test_names_that_make_no_file_name_are_a_programming_error(tmp_path: Path, worker: str, boot: str) -> None:
    with pytest.raises(ValueError, match="not usable in a file name"):
        SegmentWriter(tmp_path, worker, boot, 100)


def test_sync_runs_beside_appends_and_rotation(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w", "b", 200)
    done = threading.Event()
    failures: list[BaseException] = []

    def flush() -> None:
        try:
            while not done.is_set():
                writer.sync()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    sent = [b'{"n":%d}' % n for n in range(500)]
    for json in sent:
        writer.append(json)
    done.set()
    thread.join()
    writer.sync()
    writer.close()
    writer.sync()
    assert failures == []
    assert records(tmp_path) == sent
    assert all(_free(tmp_path / s.filename) for s in scan(tmp_path)), "no segment stays open"


def _free(path: Path) -> bool:
    with adopted(path) as free:
        return free
