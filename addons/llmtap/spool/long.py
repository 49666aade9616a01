"""Long records, written by a thread: no event loop stands still while a prompt of some hundred kilobytes goes to the disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from llmtap.core.record import Begin, encode_parts
from llmtap.spool.direct import DirectWriter
from llmtap.spool.segment import LONG

#: a record with a body of so many bytes is long: below, handing it over costs more than writing it
LONG_BYTES = 131_072
_MAX_WAITING = 64_000_000
#: what comes while the thread writes goes with the next write, about so much at most
_GROUP_BYTES = 4_000_000
#: a disk that has finished nothing for so long is not waited for
_PATIENCE_S = 1.0


class Pending:
    """A record on its way to the disk, `since` when (monotonic seconds). `done`: it is there, or in `LongRecords.failed`.

    Executor and Future of the standard library do the same at three times the price.
    """

    __slots__ = ("_tell", "done", "record", "since", "size")

    def __init__(self, record: Begin, since: float) -> None:
        self.record: Begin | None = record
        self.since = since
        self.size = len(record.body or b"")
        self.done = False
        self._tell: Callable[[], object] | None = None

    def then(self, tell: Callable[[], object]) -> None:
        """Calls `tell` when it is done, usually in the writing thread (twice where both threads find it done at once)."""
        self._tell = tell
        if self.done:
            self._told()

    def settle(self) -> None:
        """It is done."""
        self.record, self.done = None, True
        self._told()

    def _told(self) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()


class LongRecords:
    """The long records of one worker boot, in segments of their own. For the thread that has the sink, except `sync()`.

    `failed`: records that could not be written. `written`: bytes on the disk since the start.
    """

    def __init__(
        self,
        directory: Path,
        worker: str,
        boot: str,
        segment_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        writer: Callable[[Path, str, str, int], DirectWriter] = DirectWriter,
    ) -> None:
        self._open = partial(writer, directory, worker, boot + LONG, segment_bytes)
        self._group_bytes = min(_GROUP_BYTES, segment_bytes // 2)
        self._segment: DirectWriter | None = None  # made when there is something to write
        self._queue: SimpleQueue[Pending | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._clock = clock
        self._moved_at = 0.0
        self._given = self._taken = 0  # bytes of bodies; each counted by one thread only
        self.failed: deque[Begin] = deque()
        self.written = 0

    def put(self, record: Begin) -> Pending | None:
        """Has it written soon. None: not now, the disk does not keep up."""
        now = self._clock()
        pending = Pending(record, now)
        waiting = self._given - self._taken
        if waiting and (waiting + pending.size > _MAX_WAITING or now - self._moved_at > _PATIENCE_S):
            return None
        if not waiting:
            self._moved_at = now
        if self._thread is None:
            # a daemon: whoever ends without `drain` is not held up by it
            self._thread = threading.Thread(target=self._run, name="llmtap long records", daemon=True)
            self._thread.start()
        self._given += pending.size
        self._queue.put(pending)
        return pending

    def sync(self) -> None:
        """Flushes what is written. For any thread. Raises SpoolError when the disk refuses."""
        if self._segment is not None:
            self._segment.sync()

    def drain(self) -> None:
        """Waits until everything is written, or in `failed`."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def close(self) -> None:
        """Releases the segment, after `drain`."""
        if self._segment is not None:
            self._segment.close()

    def _run(self) -> None:
        going = True
        while going and (first := self._queue.get()) is not None:
            group, size = [first], first.size
            while size < self._group_bytes and not self._queue.empty():
                if (more := self._queue.get()) is None:
                    going = False
                    break
                group.append(more)
                size += more.size
            self._write(group)

    def _write(self, group: list[Pending]) -> None:
        """All of them or none: in one write, which costs little more than one of them."""
        records = [pending.record for pending in group if pending.record is not None]
        try:
            if self._segment is None:
                self._segment = self._open()
            self.written += self._segment.append_group([encode_parts(record) for record in records])
        except Exception:  # of any kind: the sink tries once more, and tells
            self.failed.extend(records)
        for pending in group:
            self._taken += pending.size
            self._moved_at = self._clock()
            pending.settle()
