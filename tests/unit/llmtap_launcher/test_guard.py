import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmtap_launcher import guard

pytestmark = pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc")

SLEEPER = "import signal, sys; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"


@contextmanager
def child(code: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A Python child in a session of its own that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True, env={**os.environ, **(env or {})}
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline()
        yield process
    finally:
        guard.signal_group(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_stat_reads_what_the_kernel_says() -> None:
    found = guard.stat(os.getpid())
    assert found is not None
    assert (found.pgrp, found.session) == (os.getpgrp(), os.getsid(0))
    assert found.start > 0
    assert guard.stat(2**22 + 1) is None


def test_stat_survives_any_command_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "stat").write_bytes(b"77 (a) S 1) b) R 1 70 71" + b" 0" * 15 + b" 4242 0 0\n")
    monkeypatch.setattr(guard, "PROC", str(tmp_path))
    assert guard.stat(77) == guard.Stat("R", 70, 71, 4242)
    assert list(guard.processes()) == [(77, guard.Stat("R", 70, 71, 4242))]


def test_lines_of_the_launcher() -> None:
    groups: dict[int, int | None] = {}
    for line in (b"+11 a", b"+22 name with spaces", b"-11", b"", b"junk", b"+x y", b"-33", b"+22 again"):
        guard.feed(groups, line)
    assert list(groups) == [22]


def test_ends_groups_with_their_descendants() -> None:
    code = "import subprocess, sys, signal\n"
    code += f"p = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdout=subprocess.PIPE); p.stdout.readline()\n"
    code += "print(p.pid, flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    groups: dict[int, int | None] = {}
    guard.feed(groups, b"+%d test" % process.pid)
    assert guard.end_all(groups, "", grace_s=10) == 1
    assert process.wait() == -signal.SIGTERM
    found = guard.stat(grandchild)
    assert found is None or found.state == "Z"
    process.stdout.close()


def test_kills_what_ignores_sigterm() -> None:
    with child(STUBBORN) as process:
        groups: dict[int, int | None] = {}
        guard.feed(groups, b"+%d test" % process.pid)
        guard.end_all(groups, "", grace_s=0.1)
        assert process.wait() == -signal.SIGKILL


def test_newest_group_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    alive = {1: True, 2: True, 3: True}

    def signal_group(pgid: int, number: int) -> None:
        told.append((pgid, number))
        alive[pgid] = False

    monkeypatch.setattr(guard, "signal_group", signal_group)
    monkeypatch.setattr(guard, "group_is", lambda pgid, start: alive[pgid])
    assert guard.end_all({1: None, 3: None, 2: None}, "", grace_s=5) == 3
    assert told == [(2, signal.SIGTERM), (3, signal.SIGTERM), (1, signal.SIGTERM)]


def test_a_reused_process_id_is_left_alone() -> None:
    with child(SLEEPER) as process:
        found = guard.stat(process.pid)
        assert found is not None
        assert guard.group_is(process.pid, found.start)
        assert guard.group_is(process.pid, None)
        assert not guard.group_is(process.pid, found.start - 1)
        assert guard.end_all({process.pid: found.start - 1}, "", grace_s=0.1) == 0
        assert process.poll() is None


def test_ends_strays_by_the_mark_in_their_environment(tmp_path: Path) -> None:
    run = str(tmp_path)
    with child(SLEEPER, {guard.RUN_VARIABLE: run}) as process, child(SLEEPER, {guard.RUN_VARIABLE: f"{run}0"}) as other:
        assert guard.marked(run) == [process.pid]
        assert guard.end_all({}, run, grace_s=10) == 1
        assert process.wait() == -signal.SIGTERM
        assert other.poll() is None


def test_never_signals_itself_or_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pgid, number: sent.append(pgid))
    for pgid in (0, 1, -1, os.getpgrp()):
        guard.signal_group(pgid, signal.SIGTERM)
    assert sent == []


def test_without_proc_a_group_is_asked_for_by_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with child(SLEEPER) as process:
        monkeypatch.setattr(guard, "PROC", str(tmp_path / "none"))
        assert guard.stat(process.pid) is None
        assert guard.group_is(process.pid, None)
        assert guard.end_all({process.pid: None}, "run", grace_s=0.2) == 1  # a zombie still counts here: both rounds run
        assert process.wait() == -signal.SIGTERM
        assert not guard.group_alive(process.pid)


@pytest.mark.parametrize("how", [["-m", "llmtap_launcher.guard"], ["-I", "-S", guard.__file__]])
def test_the_process_ends_what_is_left_at_end_of_file(how: list[str], tmp_path: Path) -> None:
    run = str(tmp_path)
    with child(SLEEPER) as kept, child(SLEEPER) as taken_back, child(SLEEPER, {guard.RUN_VARIABLE: run}) as unannounced:
        process = subprocess.Popen([sys.executable, *how, run, "5"], stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(b"+%d kept\n+%d other\n-%d\n" % (kept.pid, taken_back.pid, taken_back.pid))
        process.stdin.close()
        assert process.wait(timeout=30) == 0
        assert kept.wait() == -signal.SIGTERM
        assert unannounced.wait() == -signal.SIGTERM
        assert taken_back.poll() is None


def test_signals_do_not_end_it() -> None:
    with child(SLEEPER) as process:
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, "r", "5"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert watcher.stdin is not None
        ignores = 0
        while ignores & (1 << signal.SIGTERM - 1) == 0:  # until it has set its handlers
            status = Path(f"/proc/{watcher.pid}/status").read_text()
            ignores = int(status.split("SigIgn:")[1].split()[0], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            watcher.send_signal(number)
        watcher.stdin.write(b"+%d x\n" % process.pid)
        watcher.stdin.close()
        assert watcher.wait(timeout=30) == 0
        assert process.wait() == -signal.SIGTERM
