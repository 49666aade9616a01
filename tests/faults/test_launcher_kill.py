"""kill -9 of the launcher, of its guard, of both: what it started is gone within seconds, and the next start works."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from llmtap_launcher import guard
from support.launcher import Up, guards, running_up
from support.wait import eventually

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc"),
]

#: the guard's grace, twice (SIGTERM, SIGKILL), and a slow machine
GONE_WITHIN_S = 30.0


def kill(up: Up) -> None:
    """kill -9 of the launcher; its own end is waited for."""
    up.process.kill()
    up.process.wait()


def gone(up: Up, pids: dict[str, int]) -> None:
    """Asserts that nothing of the run is left: no group, no marked process, no guard."""
    eventually(lambda: not up.left(), f"left behind: {up.left()}", timeout_s=GONE_WITHIN_S)
    for name, pid in pids.items():
        assert not guard.group_alive(pid), name


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def ask(up: Up) -> int:
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    return httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=30).status_code


def test_launcher_killed(tmp_path: Path) -> None:
    for _ in range(2):  # the second start finds the folder as the first kill left it
        with running_up(tmp_path, "--dry-run") as up:
            assert ask(up) == 200
            pids, port = up.pids(), int(up.url.rpartition(":")[2])
            assert len(pids) == 5
            kill(up)
            gone(up, pids)
            assert free(port)


def test_launcher_killed_at_any_moment_of_its_start(tmp_path: Path) -> None:
    chance = random.Random(7)
    for round_ in range(12):
        with running_up(tmp_path, "--dry-run", ready=False) as up:
            after = chance.randrange(0, 9)

            def far_enough(up: Up = up, after: int = after) -> bool:
                assert up.process.poll() is None, up.log
                try:
                    state = up.state
                except (OSError, ValueError):
                    return False
                up.run = state["launcher"]["run"]
                started = [p for p in state["processes"] if p["pid"] is not None]
                return len(started) + sum(p["state"] == "ready" for p in started) >= after

            eventually(far_enough, f"round {round_} did not get to {after}")
            pids = up.pids()
            kill(up)
            gone(up, pids)


def test_guard_killed_then_launcher(tmp_path: Path) -> None:
    with running_up(tmp_path, "--dry-run") as up:
        (first,) = guards(up.run)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: guards(up.run) not in ([], [first]), "the guard was not replaced")
        eventually(lambda: "llmtap | the guard process ended; starting another" in up.log, "it was not told")
        pids = up.pids()
        kill(up)
        gone(up, pids)


def test_both_killed_and_the_next_start_clears_up(tmp_path: Path) -> None:
    with running_up(tmp_path, "--dry-run") as up:
        pids = up.pids()
        os.kill(up.process.pid, signal.SIGSTOP)  # so that it cannot start another guard
        for pid in guards(up.run):
            os.kill(pid, signal.SIGKILL)
        kill(up)
        assert guard.group_alive(pids["gateway"])
        with running_up(tmp_path, "--dry-run") as again:
            assert any("that an earlier run had left behind" in line for line in again.log)
            gone(up, pids)
            assert ask(again) == 200
            assert again.stop() == 0


STUBBORN = """
import signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
signal.signal(signal.SIGTERM, signal.SIG_IGN)
port = int(sys.argv[sys.argv.index("--port") + 1])
# one that ignores SIGTERM, one that leaves the group and the session
code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\nwhile True: signal.pause()"
subprocess.Popen([sys.executable, "-c", code])
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args): ...
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_an_engine_that_will_not_go(tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(STUBBORN)
    launch = {"engine": "vllm", "model": "m", "command": f"{sys.executable} {script}"}
    with running_up(tmp_path, config={"backends": [{"name": "big", "launch": launch}]}) as up:
        eventually(lambda: len(guard.marked(up.run)) >= 6, "the engine's three processes, gateway, writer, Datasette")
        eventually(lambda: next(p["state"] for p in up.state["processes"] if p["name"] == "big") == "ready", "not ready")
        pids = up.pids()
        kill(up)
        gone(up, pids)


def test_sigterm_to_everything_at_once_is_an_orderly_stop(tmp_path: Path) -> None:
    """What a service manager does that signals a whole control group."""
    with running_up(tmp_path, "--dry-run") as up:
        pids = up.pids()
        for pid in [*guards(up.run), *pids.values(), up.process.pid]:
            os.kill(pid, signal.SIGTERM)
        assert up.process.wait(60) == 0
        gone(up, pids)
