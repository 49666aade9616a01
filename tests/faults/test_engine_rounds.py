"""Engines started, stopped and killed over and over by the management API: no orphan, no zombie, no port stays behind."""

from __future__ import annotations

import os
import random
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from llmtap_launcher import guard
from support.launcher import running_up
from support.size import size
from support.wait import eventually

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc"),
]

ROUNDS = size("LLMTAP_ENGINE_ROUNDS", 6, 20)


def free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def children(pid: int) -> dict[int, str]:
    """Process id -> state of all children, zombies too."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(words[1]) == pid:
                found[int(entry.name)] = words[0]
    return found


def test_rounds_leave_nothing(tmp_path: Path) -> None:
    chance = random.Random(5)
    with running_up(tmp_path, config={"datasette": {"enabled": False}, "server": {"drain_timeout_s": 1}}) as up:
        before = set(children(up.process.pid))
        with httpx.Client(base_url=f"{up.url}/api/v1", timeout=60, trust_env=False) as client:
            for number in range(ROUNDS):
                how = ("stop", "crash", "fail", "crash while starting")[number % 4]
                args = {"no-such-flag": 1} if how == "fail" else {}
                name = f"r{number}"
                answer = client.post("/inference/up", json={"model": "m", "name": name, "engine": "sim", "args": args})
                if how == "fail":
                    assert answer.status_code == 422
                    continue
                assert answer.status_code == 200, answer.text
                row = answer.json()["backend"]
                if how.startswith("crash"):
                    os.killpg(row["pid"], signal.SIGKILL)
                    if chance.random() < 0.5 or how == "crash":
                        eventually(lambda name=name: client.get(f"/backends/{name}").json()["restarts"] == 1, "no restart")
                assert client.post("/inference/down", json={"name": name}).status_code == 200
                assert not guard.group_alive(row["pid"]) and free(urlsplit(row["url"]).port or 0)
        assert set(children(up.process.pid)) == before and "Z" not in children(up.process.pid).values()
        assert up.stop() == 0
        assert up.left() == []


def test_an_engine_of_the_api_goes_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with running_up(tmp_path, config={"datasette": {"enabled": False}}) as up:
        answer = httpx.post(f"{up.url}/api/v1/inference/up", json={"model": "m", "engine": "sim"}, timeout=60)
        pid = answer.json()["backend"]["pid"]
        up.process.kill()
        up.process.wait()
        eventually(lambda: not up.left() and not guard.group_alive(pid), "it lives on", timeout_s=30)
    with running_up(tmp_path, config={"datasette": {"enabled": False}}) as again:  # the sockets it left are in nobody's way
        assert httpx.get(f"{again.url}/api/v1/status", timeout=10).json()["backends"] == []
