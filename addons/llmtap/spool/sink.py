"""Where captured exchanges go: encodes records, appends them to the spool, and never lets disk trouble reach a request.

`SpoolSink` raises only when it is made (the folder cannot be used: the operator should know at start). Afterwards it
leaves out what does not fit (`ladder.py`), counts it, tries again and heals by itself.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import orjson

from llmtap.core.errors import SpoolError
from llmtap.core.record import VERSION, Begin, Choice, End, encode, encode_fields
from llmtap.spool.ladder import Ladder, Level, Why, ample, level_for
from llmtap.spool.long import LONG_BYTES, LongRecords, Pending
from llmtap.spool.segment import scan
from llmtap.spool.writer import SegmentWriter

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: how often the folder is measured again while its size limit bites and no `sync()` does it
_MEASURE_S = 0.5


class SpoolSink:
    """The capture log of one worker boot.

    `segment_bytes` and `max_spool_bytes` are configuration (`capture.segment_mb`, `capture.max_spool_gb`);
    `max_body_bytes` drops larger bodies from records (None: all are kept). Use from one thread; `sync()` from any.
    Long records that may wait a moment (`write_begin_soon`) have a thread and segments of their own (`long.py`).
    """

    def __init__(
        self,
        directory: Path,
        worker: str,
        boot: str,
        *,
        segment_bytes: int = 100_000_000,
        max_spool_bytes: int | None = None,
        max_body_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        writer: Callable[..., SegmentWriter] = SegmentWriter,
        long: LongRecords | None = None,
    ) -> None:
        self._ladder = Ladder()
        self._segment = writer(directory, worker, boot, segment_bytes)
        self._long = long if long is not None else LongRecords(directory, worker, boot, segment_bytes)
        self._max_spool_bytes = max_spool_bytes
        self._ample = ample(max_spool_bytes)
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._wall_us = wall_us
        self._flush_failed = False
        self._closed = False
        self._measure()

    @property
    def dropped(self) -> Counter[str]:
        """What was left out since the start, by `what_why`: `timings_disk_full`, `bodies_too_large`, `records_spool_full` …"""
        return self._ladder.dropped

    @property
    def spool_bytes(self) -> int:
        """Size of the whole spool folder (all workers): as last measured plus what was appended since."""
        return self._measured + self._appended + self._long.written - self._long_before

    @property
    def healthy(self) -> bool:
        """Whether records are written whole and reach the disk."""
        return self._ladder.level is Level.ALL and not self._flush_failed

    def write_begin(self, record: Begin) -> bool:
        """Writes the first record of an exchange. False when it was dropped. Never raises for disk trouble."""
        return self._write(record)

    def write_fields(self, kind: Literal["begin", "end"], fields: Mapping[str, Any], body_size: int = 0) -> bool:
        """Writes a record given as `encode_fields` takes it. False: nothing was written, it must come as a whole."""
        cap = self._max_body_bytes
        if (cap is not None and body_size > cap) or not self._keeps_all():
            return False
        try:
            self._appended += self._segment.append(encode_fields(kind, fields))
        except (SpoolError, TypeError, ValueError):
            return False
        return True

    def write_begin_soon(self, record: Begin) -> Pending | None:
        """`write_begin`, but a long record is left to a thread. Call `again` when it is done.

        None: it has been written or dropped. Never raises for disk trouble."""
        size = len(record.body) if record.body is not None else 0
        if LONG_BYTES <= size <= (self._max_body_bytes or size) and self._keeps_all():
            pending = self._long.put(record)
            if pending is not None:
                return pending
        self.write_begin(record)
        return None

    def again(self) -> None:
        """Writes what the thread could not, leaving out what must be left out."""
        while self._long.failed:
            self._write(self._long.failed.popleft())

    def write_end(self, record: End) -> bool:
        """Writes the last record of an exchange. False when it was dropped. Never raises for disk trouble."""
        return self._write(record)

    def sync(self) -> None:
        """Flushes to the disk and measures the spool. For a thread, every 500 ms. Never raises for disk trouble."""
        try:
            self._segment.sync()
            self._long.sync()
            self._measure()
        except (SpoolError, OSError):
            self._flush_failed = True
        else:
            self._flush_failed = False

    def close(self) -> None:
        """States what is still owed, flushes and releases the segment. Records written afterwards are dropped."""
        if self._closed:
            return
        self._long.drain()
        self.again()
        if self._ladder.owed:
            self._write_gap()
        self.sync()
        self._closed = True
        self._segment.close()
        self._long.close()

    def _write(self, record: Begin | End) -> bool:
        if self._closed:
            self._ladder.drop("records", "io_error")
            return False
        if self._max_body_bytes is None and self._keeps_all():
            try:
                self._appended += self._segment.append(encode(record))
                return True
            except (SpoolError, TypeError, ValueError):
                pass  # once more, step by step
        now = self._clock()
        record = self._without_large_body(record)
        level = self._ladder.attempt(now, self._floor(now))
        while level < Level.NO_RECORDS:
            kept, lost_timings, lost_body = _reduced(record, level, self._ladder.why)
            try:
                self._appended += self._segment.append(_encoded(kept))
            except SpoolError as error:
                level = self._ladder.failed(level, now, _why(error))
                continue
            except (TypeError, ValueError):
                self._ladder.drop("records", "unencodable")
                return False
            if lost_timings:
                self._ladder.drop("timings")
            if lost_body:
                self._ladder.drop("bodies")
            if self._ladder.succeeded(level):
                self._write_gap()
            return True
        self._ladder.drop("records")
        return False

    def _keeps_all(self) -> bool:
        return not self._closed and self._ladder.intact and self.spool_bytes < self._ample

    def _write_gap(self) -> None:
        gap = {
            "v": VERSION,
            "t": "gap",
            "worker": self._segment.worker,
            "at_us": self._wall_us(),
            "dropped": dict(self._ladder.owed),
        }
        try:
            self._appended += self._segment.append(orjson.dumps(gap))
        except SpoolError:
            return  # still owed: the next recovery says it
        self._ladder.settle()

    def _floor(self, now: float) -> Level:
        floor = level_for(self.spool_bytes, self._max_spool_bytes)
        if floor > Level.ALL and now >= self._measured_at + _MEASURE_S:
            self._measure()
            floor = level_for(self.spool_bytes, self._max_spool_bytes)
        return floor

    def _measure(self) -> None:
        self._long_before = self._long.written
        try:
            self._measured, self._appended = sum(scan(self._segment.directory).values()), 0
        except OSError:
            self._measured, self._appended = self._segment.size, 0
        self._measured_at = self._clock()

    def _without_large_body(self, record: Begin | End) -> Begin | End:
        cap = self._max_body_bytes
        if cap is None or record.body is None or len(record.body) <= cap:
            return record
        self._ladder.drop("bodies", "too_large")
        return _without_body(record, "too_large")


def _why(error: SpoolError) -> Why:
    cause = error.__cause__
    return "disk_full" if isinstance(cause, OSError) and cause.errno in _FULL else "io_error"


def _without_body(record: Begin | End, why: str) -> Begin | End:
    if isinstance(record, Begin) and record.forwarded is not None:
        record = replace(record, forwarded=None)
    return replace(record, body=None, body_dropped=why)


def _reduced(record: Begin | End, level: Level, why: str) -> tuple[Begin | End, bool, bool]:
    """The record at this level, and whether that cost it its timings and its body (an end record's body is its reply too)."""
    timings = body = False
    if level >= Level.NO_TIMINGS and isinstance(record, End) and record.deltas is not None:
        record, timings = replace(record, deltas=None), True
    if level >= Level.NO_BODIES:
        record, body = without_bodies(record, why)
    return record, timings, body


def without_bodies(record: Begin | End, why: str) -> tuple[Begin | End, bool]:
    """The record without texts (`body_dropped` says `why`), a copy where it had any; and whether it had."""
    body = False
    if isinstance(record, End) and record.summary is not None and record.summary.choices:
        bare = [Choice(c.index, c.role, finish_reason=c.finish_reason) for c in record.summary.choices]
        record, body = replace(record, summary=replace(record.summary, choices=bare), body_dropped=why), True
    if isinstance(record, End) and record.messages is not None:
        count = len(record.messages) + (record.messages_dropped or 0)
        record, body = replace(record, messages=None, messages_dropped=count, body_dropped=why), True
    if record.body is not None:
        record, body = _without_body(record, why), True
    return record, body


def _encoded(record: Begin | End) -> bytes:
    try:
        return encode(record)
    except TypeError:  # text that is not Unicode (headers), numbers beyond 64 bits: keep what can be said
        return encode(plain(record))


def plain(value: Any) -> Any:
    """The same value with everything JSON has no word for put into text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if value is None or isinstance(value, (bool, float, bytes)):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, dict):
        return {plain(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: plain(getattr(value, f.name)) for f in fields(value)})
    return plain(str(value))
