"""The log of a client: spool records, written by any thread, also after a fork."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from llmtap.core.ids import Ulids
from llmtap.core.record import Begin, End
from llmtap.spool.sink import SpoolSink

_SYNC_S = 1.0


class Journal:
    """Writes `<directory>/spool/*.jsonl`, a new file every `segment_bytes`. Raises SpoolError when the folder cannot be used;
    later trouble (a full disk) never reaches a call, `dropped` counts what it cost. `directory` None: ids, and no log."""

    def __init__(self, directory: Path | None, segment_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._guard = threading.Lock()
        self._closed = False
        self._renew()

    def _renew(self) -> None:
        """A process writes to files of its own: after a fork the parent goes on with the old one."""
        self._pid = os.getpid()
        self._ulids = Ulids()
        self.worker = f"{socket.gethostname().partition('.')[0]}.{self._pid}"
        self._synced_at = self._clock()
        self._sink: SpoolSink | None = None
        if self.directory is not None and not self._closed:
            self._sink = SpoolSink(self.directory / "spool", self.worker, self._ulids(), segment_bytes=self._segment_bytes)

    def new_id(self) -> str:
        """A ULID."""
        with self._guard:
            if self._pid != os.getpid():
                self._renew()
            return self._ulids()

    def write(self, record: Begin | End) -> None:
        """Raises nothing for disk trouble."""
        with self._guard:
            if self._pid != os.getpid():
                self._renew()
            if self._sink is None:
                return
            if isinstance(record, Begin):
                self._sink.write_begin(record)
            else:
                self._sink.write_end(record)

    def due(self) -> bool:
        """Whether a second has gone by since the last `sync`, which is then the caller's to do."""
        with self._guard:
            now = self._clock()
            if self._sink is None or now - self._synced_at < _SYNC_S:
                return False
            self._synced_at = now
            return True

    def sync(self) -> None:
        """Has the disk take what was written: it may take its time, so not on an event loop."""
        sink = self._sink
        if sink is not None:
            sink.sync()

    @property
    def dropped(self) -> dict[str, int]:
        """What could not be written, by what and why."""
        with self._guard:
            return dict(self._sink.dropped) if self._sink is not None else {}

    def close(self) -> None:
        """Flushes and lets the file go. Later records are not written."""
        with self._guard:
            self._closed = True
            if self._sink is not None and self._pid == os.getpid():
                self._sink.close()
