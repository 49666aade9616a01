"""The guard: a tiny process that ends the launcher's children when the launcher itself was killed and could not.

It holds the read end of a pipe (its stdin) whose only write end is the launcher's, so end-of-file means: the launcher is gone,
however it went. Until then the launcher writes one line a change: `+<pgid> <name>` for a process group it started,
`-<pgid>` for one that ended. At end-of-file the guard sends SIGTERM to what is left, newest first, waits a short grace,
sends SIGKILL to the rest, and exits. An orderly launcher has taken every group back before, so nothing is left to do.

Process ids are reused, so a group is signalled only while it is the one that was announced: its leader still has the start
time it had then, or, when the leader is gone, its members still belong to the session the leader founded. What was started
in the instant before the launcher could announce it, or left its group, is found by the run's mark in its environment.

Run by path in isolated mode (`python -I -S guard.py RUN GRACE_S`) it imports five small modules and nothing of ours: it starts in
milliseconds, takes some 10 MB, and has little that could break. `python -m llmtap_launcher.guard` works as well.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

#: environment variable that marks every process of one launcher run
RUN_VARIABLE = "LLMTAP_RUN"
PROC = "/proc"
POLL_S = 0.05


class Stat(NamedTuple):
    """What /proc/<pid>/stat says: state letter, process group, session, start time in clock ticks since boot."""

    state: str
    pgrp: int
    session: int
    start: int


def stat(pid: int) -> Stat | None:
    """The process's Stat; None when there is no such process, or no /proc (then nothing can be verified)."""
    try:
        with open(f"{PROC}/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # the second field is the command in parentheses and may hold anything, parentheses included: count from its end
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(fields[0].decode(), int(fields[2]), int(fields[3]), int(fields[19]))


def processes() -> Iterator[tuple[int, Stat]]:
    """Every process that /proc shows, zombies left out (they have ended; only their parent has not looked)."""
    try:
        names = os.listdir(PROC)
    except OSError:
        return
    for name in names:
        if name.isdigit():
            found = stat(int(name))
            if found is not None and found.state not in "ZX":
                yield int(name), found


def have_proc() -> bool:
    """Whether processes can be looked at here (Linux)."""
    return stat(os.getpid()) is not None


def group_alive(pgid: int) -> bool:
    """Whether a running process belongs to the group."""
    if have_proc():
        return any(found.pgrp == pgid for _, found in processes())
    try:
        os.killpg(pgid, 0)
    except OSError:  # gone, or somebody else's by now
        return False
    return True


def group_is(pgid: int, start: int | None) -> bool:
    """Whether group `pgid` has a running member and still is the one whose leader started at `start` (None: unknown)."""
    if not have_proc():
        return group_alive(pgid)
    leader = stat(pgid)
    if leader is not None and start is not None and leader.start != start:
        return False  # the id was given to another process, which the kernel does only once the old group is empty
    return any(found.pgrp == pgid and found.session == pgid for _, found in processes())


def marked(run: str) -> list[int]:
    """Processes of this run by the mark in their environment (other users' environments cannot be read, and are not ours)."""
    mark = f"{RUN_VARIABLE}={run}".encode()
    found = []
    for pid, _ in processes():
        if pid == os.getpid():
            continue
        try:
            with open(f"{PROC}/{pid}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue
        if mark in environment.split(b"\0"):
            found.append(pid)
    return found


def signal_group(pgid: int, number: int) -> None:
    """Signal a whole group; one that is gone, or not ours, is passed over. Never our own group."""
    if pgid <= 1 or pgid == os.getpgrp():
        return
    try:
        os.killpg(pgid, number)
    except OSError:
        return


def _signal_process(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return


def end_all(groups: dict[int, int | None], run: str, grace_s: float) -> int:
    """End the groups `{pgid: start time of the leader}`, last first, and whatever bears the run's mark.

    Returns how many there were. SIGTERM, at most `grace_s` seconds for them to go, SIGKILL.
    """

    def left() -> tuple[list[int], list[int]]:
        alive = [pgid for pgid, start in reversed(groups.items()) if group_is(pgid, start)]
        strays = []
        for pid in marked(run) if run else []:
            found = stat(pid)
            if found is not None and found.pgrp not in alive:
                strays.append(pid)
        return alive, strays

    alive, strays = left()
    count = len(alive) + len(strays)
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        for pgid in alive:
            signal_group(pgid, number)
        for pid in strays:
            _signal_process(pid, number)
        deadline = time.monotonic() + patience_s
        while alive or strays:
            if time.monotonic() > deadline:
                break
            select.select([], [], [], POLL_S)
            alive, strays = left()
    return count


def feed(groups: dict[int, int | None], line: bytes) -> None:
    """Take one line of the launcher's (`+pgid name` or `-pgid`) into `groups`; anything else is passed over."""
    sign, number = line[:1], line[1:].split(b" ", 1)[0]
    if not number.isdigit():
        return
    pgid = int(number)
    if sign == b"+":
        found = stat(pgid)
        groups.pop(pgid, None)  # a group announced again is the newest
        groups[pgid] = found.start if found is not None else None
    elif sign == b"-":
        groups.pop(pgid, None)


def watch(descriptor: int, run: str, grace_s: float) -> None:
    """Follow the launcher's lines until end-of-file, then end what is left."""
    groups: dict[int, int | None] = {}
    rest = b""
    while data := os.read(descriptor, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            feed(groups, line)
    end_all(groups, run, grace_s)


def main() -> None:
    """`guard.py [RUN [GRACE_S]]`, the launcher's pipe on stdin."""
    # who ends the launcher's whole control group (systemd, a terminal) must not end the guard first: end-of-file does
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run = sys.argv[1] if len(sys.argv) > 1 else ""
    watch(0, run, float(sys.argv[2]) if len(sys.argv) > 2 else 5.0)


if __name__ == "__main__":
    main()
