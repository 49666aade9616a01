"""What to leave out of the capture when the disk is full: a state machine without I/O, the clock passed in.

Steps, each keeping more of the requests' story than the next: timings go first, then bodies, then whole records.
A failed write goes one step down and the same record is tried again, smaller. While degraded, every `probe_s` a record is
tried whole; when that works everything is kept again and what was lost in between is owed to the log as a `gap` record.
A limit on the spool's own size works the same way, except that its steps come before the limit, not after the failure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

What = Literal["timings", "bodies", "records"]
Why = Literal["disk_full", "spool_full", "io_error", "too_large", "unencodable"]

#: share of `max_spool_gb` from which timings, bodies and records are left out
_STEPS = (0.90, 0.95, 1.0)


class Level(IntEnum):
    """What is kept."""

    ALL = 0
    NO_TIMINGS = 1
    NO_BODIES = 2
    NO_RECORDS = 3


def ample(max_bytes: int | None) -> float:
    """Below this many bytes a spool with this limit takes everything."""
    return float("inf") if max_bytes is None else _STEPS[0] * max_bytes


def level_for(used_bytes: int, max_bytes: int | None) -> Level:
    """What a spool of this size still takes, given its limit (None: no limit)."""
    if max_bytes is None:
        return Level.ALL
    return Level(sum(used_bytes >= share * max_bytes for share in _STEPS))


@dataclass(slots=True)
class Ladder:
    """Where on the ladder we stand. `dropped` counts since the start, by `what_why` (`bodies_disk_full`)."""

    probe_s: float = 0.1
    dropped: Counter[str] = field(default_factory=Counter)
    owed: Counter[str] = field(default_factory=Counter)  # dropped since the last gap record
    _disk: Level = Level.ALL  # what the disk took last
    _disk_why: Why = "disk_full"
    _floor: Level = Level.ALL  # what the spool's size limit allows
    _probe_at: float = 0.0

    @property
    def level(self) -> Level:
        """What is kept at present."""
        return max(self._disk, self._floor)

    @property
    def intact(self) -> bool:
        """Nothing is left out, and nothing is owed: no need to ask before a write."""
        return not (self._disk or self._floor or self.owed)

    @property
    def why(self) -> Why:
        """Why not everything is kept."""
        return "spool_full" if self._floor >= max(self._disk, Level.NO_TIMINGS) else self._disk_why

    def attempt(self, now: float, floor: Level = Level.ALL) -> Level:
        """The level to try the next record at. `now`: seconds, monotonic; `floor`: what the spool's size limit allows at most."""
        self._floor = floor
        if self._disk is Level.ALL or now < self._probe_at:
            return self.level
        self._probe_at = now + self.probe_s
        return floor

    def failed(self, tried: Level, now: float, why: Why) -> Level:
        """A write at `tried` failed: the next level to try (NO_RECORDS: give the record up)."""
        if self._disk is Level.ALL:
            self._probe_at = now + self.probe_s
        self._disk, self._disk_why = Level(min(tried + 1, Level.NO_RECORDS)), why
        return self.level

    def succeeded(self, tried: Level) -> bool:
        """A write at `tried` worked. True when a gap record is due: everything is kept again, and something was lost."""
        self._disk = tried if tried > self._floor else Level.ALL
        return self.level is Level.ALL and bool(self.owed)

    def drop(self, what: What, why: Why | None = None) -> None:
        """Counts something left out, by default for the reason the ladder stands where it stands."""
        key = f"{what}_{why or self.why}"
        self.dropped[key] += 1
        self.owed[key] += 1

    def settle(self) -> dict[str, int]:
        """What the gap record says; call it once that is written."""
        owed, self.owed = dict(self.owed), Counter()
        return owed
