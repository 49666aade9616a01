"""The sink: records in, disk trouble counted and survived, what was lost stated."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.errors import SpoolError
from llmtap.core.record import Begin, Choice, End, Summary, Usage
from llmtap.spool.long import LongRecords
from llmtap.spool.reader import read
from llmtap.spool.segment import scan
from llmtap.spool.sink import SpoolSink
from llmtap.spool.writer import SegmentWriter


class Disk:
    """A disk that refuses writes larger than `largest` bytes."""

    def __init__(self) -> None:
        self.largest: int | None = None
        self.errno = errno.ENOSPC

    def write(self, fd: int, data: bytes) -> int:
        if self.largest is not None and len(data) > self.largest:
            if self.errno != errno.ENOSPC:
                raise OSError(self.errno, os.strerror(self.errno))
            return os.write(fd, data[: self.largest])
        return os.write(fd, data)

    def writev(self, fd: int, parts: Sequence[bytes]) -> int:
        return self.write(fd, b"".join(parts))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


Make = Callable[..., SpoolSink]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, disk: Disk, clock: Clock) -> Iterator[Make]:
    made: list[SpoolSink] = []

    def build(**kwargs: Any) -> SpoolSink:
        writer = partial(SegmentWriter, write=disk.write, writev=disk.writev, clock=clock)
        made.append(SpoolSink(tmp_path, "w0", "b", clock=clock, wall_us=lambda: 42, writer=writer, **kwargs))
        return made[-1]

    yield build
    disk.largest = None
    for sink in made:
        sink.close()


def stored(directory: Path) -> list[dict[str, Any]]:
    return [record for s in scan(directory) for record in stored_in(directory / s.filename)]


def stored_in(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(r) for _, r in read(path) if isinstance(r, bytes)]


def begin(uid: str = "u", body: bytes | None = b'{"a":1}', **more: Any) -> Begin:
    return Begin(uid, 1, "w0", "POST", "/v1/chat/completions", "chat", body=body, body_is_json=body is not None, **more)


def end(uid: str = "u", deltas: list[int] | None = None, text: str = "hello") -> End:
    summary = Summary(choices=[Choice(0, content=text, finish_reason="stop")], usage=Usage(1, 2, source="upstream"))
    return End(uid, 2, "ok", status=200, summary=summary, deltas=deltas)


def test_writes_both_records(tmp_path: Path, make: Make) -> None:
    sink = make()
    assert sink.write_begin(begin())
    assert sink.write_end(end(deltas=[10, 2]))
    first, last = stored(tmp_path)
    assert (first["t"], first["uid"], first["body"]) == ("begin", "u", {"json": {"a": 1}})
    assert (last["t"], last["deltas"], last["summary"]["choices"][0]["content"]) == ("end", [10, 2], "hello")
    assert sink.healthy
    assert sink.dropped == {}
    assert sink.spool_bytes == sum(scan(tmp_path).values())


def test_a_full_disk_costs_timings_then_bodies_then_records_and_says_so(
    tmp_path: Path, make: Make, disk: Disk, clock: Clock
) -> None:
    sink = make()
    disk.largest = 800
    assert sink.write_end(end("timings", deltas=[1000] * 300))
    assert sink.write_end(end("bodies", text="x" * 2000))
    assert sink.write_begin(begin("begin", body=b'"' + b"x" * 2000 + b'"'))
    disk.largest = 0
    assert not sink.write_begin(begin("gone"))
    assert not sink.healthy
    assert sink.dropped == {"timings_disk_full": 1, "bodies_disk_full": 2, "records_disk_full": 1}
    disk.largest = None
    assert not sink.write_begin(begin("too early")), "between probes nothing is tried"
    clock.now += 0.1
    assert sink.write_end(end("back", deltas=[1]))
    assert sink.healthy
    by = {r.get("uid", r["t"]): r for r in stored(tmp_path)}
    assert list(by) == ["timings", "bodies", "begin", "back", "gap"]
    assert "deltas" not in by["timings"]
    assert by["timings"]["summary"]["choices"][0]["content"] == "hello"
    assert by["bodies"]["body_dropped"] == by["begin"]["body_dropped"] == "disk_full"
    assert by["bodies"]["summary"]["choices"][0]["content"] is None
    assert by["bodies"]["summary"]["choices"][0]["finish_reason"] == "stop"
    assert by["bodies"]["summary"]["usage"]["completion_tokens"] == 2
    assert by["back"]["deltas"] == [1]
    dropped = {"timings_disk_full": 1, "bodies_disk_full": 2, "records_disk_full": 2}
    assert by["gap"] == {"v": 1, "t": "gap", "worker": "w0", "at_us": 42, "dropped": dropped}


LONG = b'"' + b"x" * 200_000 + b'"'


def test_long_records_that_may_wait_are_left_to_a_thread(tmp_path: Path, make: Make) -> None:
    sink = make()
    assert sink.write_begin_soon(begin("short")) is None
    pending = sink.write_begin_soon(begin("long", LONG))
    assert pending is not None
    assert sink.write_end(end("long"))
    sink.close()
    assert pending.done and sink.dropped == {}
    assert {(s.boot, r["uid"]) for s in scan(tmp_path) for r in stored_in(tmp_path / s.filename)} == {
        ("b", "short"),
        ("b", "long"),
        ("b.long", "long"),
    }
    assert sink.write_begin_soon(begin("late", LONG)) is None and sink.dropped == {"records_io_error": 1}, "a closed sink drops"


def test_the_size_of_the_spool_counts_long_records_before_it_is_measured(tmp_path: Path, make: Make) -> None:
    sink = make(max_spool_bytes=1_040_000)
    for n in range(4):
        assert sink.write_begin_soon(begin(f"u{n}", LONG)) is not None
    sink._long.drain()
    assert sink.spool_bytes == sum(scan(tmp_path).values()) > 800_000
    assert sink.write_begin_soon(begin("u4", LONG)) is not None
    sink._long.drain()
    assert sink.write_begin_soon(begin("too much", LONG)) is None
    assert sink.dropped == {"bodies_spool_full": 1}


def test_what_the_thread_could_not_write_is_written_step_by_step(tmp_path: Path, make: Make, disk: Disk) -> None:
    (tmp_path / "long").touch()
    sink = make(long=LongRecords(tmp_path / "long", "w0", "b", 1_000_000))  # a file where its folder should be
    disk.largest = 1000
    pending = sink.write_begin_soon(begin("u", LONG))
    assert pending is not None
    sink._long.drain()
    sink.again()
    assert [(r["uid"], r["body_dropped"]) for r in stored(tmp_path)] == [("u", "disk_full")]
    assert sink.dropped == {"bodies_disk_full": 1}
    assert sink.write_begin_soon(begin("v", LONG)) is None, "while something is left out everything goes step by step"


def test_a_large_body_is_cut_before_a_thread_sees_it(tmp_path: Path, make: Make) -> None:
    sink = make(max_body_bytes=150_000)
    assert sink.write_begin_soon(begin("u", LONG)) is None
    assert sink.dropped == {"bodies_too_large": 1}


def test_another_disk_error_has_its_own_name(make: Make, disk: Disk) -> None:
    sink = make()
    disk.largest, disk.errno = 0, errno.EIO
    assert not sink.write_begin(begin())
    assert sink.dropped == {"records_io_error": 1}


def test_a_gap_still_owed_at_the_end_is_written_on_closing(tmp_path: Path, make: Make, disk: Disk) -> None:
    sink = make()
    disk.largest = 0
    sink.write_begin(begin())
    disk.largest = None
    sink.close()
    assert [r["dropped"] for r in stored(tmp_path)] == [{"records_disk_full": 1}]
    assert not sink.write_begin(begin()), "a closed sink drops"


def test_the_size_limit_of_the_spool_holds_for_all_workers_and_lifts(tmp_path: Path, make: Make, clock: Clock) -> None:
    other = tmp_path / "w1-b-000001.jsonl"
    other.write_bytes(b"x" * 9_200)
    sink = make(max_spool_bytes=10_000)
    assert sink.write_end(end("no timings", deltas=[1]))
    other.write_bytes(b"x" * 20_000)
    sink.sync()
    assert not sink.write_begin(begin("none"))
    assert not sink.healthy
    assert sink.dropped == {"timings_spool_full": 1, "records_spool_full": 1}
    other.unlink()  # the store has taken it
    assert not sink.write_begin(begin("not measured yet"))
    clock.now += 0.5
    assert sink.write_begin(begin("room"))
    assert sink.healthy
    assert [r.get("uid", r["t"]) for r in stored(tmp_path)] == ["no timings", "room", "gap"]


def test_large_bodies_are_dropped_not_the_record(tmp_path: Path, make: Make) -> None:
    sink = make(max_body_bytes=10)
    assert sink.write_begin(begin(body=b'"' + b"x" * 20 + b'"'))
    assert stored(tmp_path)[0]["body_dropped"] == "too_large"
    assert "body" not in stored(tmp_path)[0]
    assert sink.dropped == {"bodies_too_large": 1}


def test_what_json_cannot_say_is_said_as_text(tmp_path: Path, make: Make) -> None:
    sink = make()
    odd = {"n": 1 << 70, "s": "\ud800", "o": {1}, "t": (True, None), 5: 1.5}
    assert sink.write_begin(begin(user_agent="caf\udce9", metadata=odd))
    found = stored(tmp_path)[0]
    assert found["user_agent"] == "caf?"
    assert found["metadata"] == {"n": str(1 << 70), "s": "?", "o": "{1}", "t": [True, None], "5": 1.5}
    nested = end(text="\ud800")
    assert sink.write_end(nested)
    assert stored(tmp_path)[1]["summary"]["choices"][0]["content"] == "?"


def test_a_deleted_folder_heals(tmp_path: Path, make: Make, clock: Clock) -> None:
    sink = make()
    sink.write_begin(begin("lost with its folder"))
    for segment in scan(tmp_path):
        (tmp_path / segment.filename).unlink()
    clock.now += 0.05
    assert sink.write_begin(begin("kept"))
    assert [r["uid"] for r in stored(tmp_path)] == ["kept"]


def test_a_flush_that_fails_shows_in_health_and_passes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = make()

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patched:
        patched.setattr("llmtap.spool.writer.os.fdatasync", refuse)
        sink.sync()
    assert not sink.healthy
    sink.sync()
    assert sink.healthy


def test_an_unusable_folder_is_known_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match="Not a directory"):
        SpoolSink(tmp_path / "file" / "spool", "w", "b")


def test_what_was_said_over_a_websocket_goes_with_the_bodies(tmp_path: Path, make: Make, disk: Disk) -> None:
    sink = make()
    disk.largest = 800
    said = [{"at_ms": 1.0, "from": "client", "bytes": 400, "text": "x" * 400}] * 3
    assert sink.write_end(End(uid="u", at_us=1, outcome="ok", messages=said, messages_dropped=2))
    assert sink.dropped == {"bodies_disk_full": 1}
    (record,) = stored(tmp_path)
    assert "messages" not in record and record["messages_dropped"] == 5 and record["body_dropped"] == "disk_full"
