"""Processes as /proc shows them: CPU used, memory, who owns a listening port; and which CPU belongs to whom.

Linux only, like the whole bench.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
#: bytes read at once, into a buffer that stays: `recv(ROOM)` takes that much from the system for each piece and gives it back,
#: which was two thirds of the instruments' CPU and put milliseconds before the pieces behind it
ROOM = 262_144
_ALLOWED = sorted(os.sched_getaffinity(0))
#: the server under test has this CPU for itself ...
SERVER = {_ALLOWED[0]}
#: ... and the instruments the others. On one CPU they share it, and no figure means much
INSTRUMENTS = set(_ALLOWED[1:]) or SERVER


def raise_nofile() -> int:
    """As many open files as this process may have; the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def spawn(
    argv: list[str],
    cpu: set[int],
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    nice: int = 0,
) -> subprocess.Popen[str]:
    """Start a process on these CPUs, in a session of its own (so that `stop` ends its children too).

    Its output goes to `log`; without one, standard output is a pipe.
    """

    def pin() -> None:
        os.sched_setaffinity(0, cpu)
        raise_nofile()
        if nice:
            os.nice(nice)
            # where the kernel groups processes by session, `nice` counts within a session only, and each of ours is one
            with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:
                group.write(str(nice))

    if log is None:
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env, cwd=cwd, preexec_fn=pin, start_new_session=True)
    with log.open("w") as out:
        return subprocess.Popen(
            argv, stdout=out, stderr=subprocess.STDOUT, text=True, env=env, cwd=cwd, preexec_fn=pin, start_new_session=True
        )


def stop(process: subprocess.Popen[str]) -> None:
    """End a process that `spawn` started, and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def paused(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Processes that `spawn` started stand still, with what they started."""

    def tell(number: signal.Signals) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, number)

    try:
        tell(signal.SIGSTOP)
        yield
    finally:
        tell(signal.SIGCONT)


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes so far; those that are gone count as nothing."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def rss_bytes(pids: list[int]) -> int:
    """Resident memory of these processes."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def owner_of_port(port: int) -> set[int]:
    """The processes that listen on a local TCP port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    owners = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            for fd in os.listdir(f"/proc/{entry}/fd"):
                if os.readlink(f"/proc/{entry}/fd/{fd}") in inodes:
                    owners.add(int(entry))
        except OSError:
            continue
    return owners


def wait_until(condition: Callable[[], object], timeout_s: float, every_s: float = 0.05) -> bool:
    """Whether `condition` became true in time."""
    pause, end = threading.Event(), time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(every_s)
    return True


def settle(pids: list[int], timeout_s: float = 8.0, share: float = 0.1) -> bool:
    """Wait until these processes together use less than `share` of a CPU: what a round left behind would disturb the next one.

    Whether they came to rest in time.
    """
    last = [cpu_seconds(pids)]

    def quiet() -> bool:
        now = cpu_seconds(pids)
        used, last[0] = now - last[0], now
        return used <= share * 0.1

    return wait_until(quiet, timeout_s, every_s=0.1)


def busy_seconds() -> float:
    """CPU time that the whole machine has used so far, whoever used it."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / TICK
