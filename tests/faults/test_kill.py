"""kill -9 of gateway, writer, launcher and engine at random, under load: nothing a client saw finished is missing or twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.gateway import free_port
from support.size import size
from support.wait import eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
ROUNDS = size("LLMTAP_KILL_ROUNDS", 12, 50)
CLIENTS = 8
MODEL = "sim-small"
LONG = ", at length" * 15_000
#: kills that one launcher lives through before it is ended itself: fewer than its crash-loop limit
ROUNDS_A_LAUNCHER = 4


@dataclass
class Seen:
    """What clients saw: request ids of complete replies with their text, and of those that broke."""

    finished: dict[str, tuple[str, str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    sent: int = 0


class Load(threading.Thread):
    """Clients that never stop asking; every prompt is unique, some are so long that a thread writes them."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.seen = Seen()
        self._stop_asking = threading.Event()

    def run(self) -> None:
        asyncio.run(self._all())

    def end(self) -> None:
        self._stop_asking.set()
        self.join(timeout=60)
        assert not self.is_alive()

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(i) for i in range(CLIENTS)))

    async def _client(self, who: int) -> None:
        n = 0
        while not self._stop_asking.is_set():
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=20) as http:
                with contextlib.suppress(httpx.HTTPError):
                    for _ in range(20):
                        if self._stop_asking.is_set():
                            return
                        n += 1
                        prompt = f"client {who} request {n}" + (LONG if n % 7 == 0 else "")
                        await self._ask(http, prompt, stream=n % 3 != 0)
            await asyncio.sleep(0.02)  # the gateway is away: not in a tight loop

    async def _ask(self, http: httpx.AsyncClient, prompt: str, stream: bool) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 24, "stream": stream}
        self.seen.sent += 1
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            uid = reply.headers.get("x-request-id")
            if uid is None:
                return
            self.seen.broken.add(uid)
            data = b"".join([piece async for piece in reply.aiter_raw()])
        text = text_of(data, stream) if reply.status_code == 200 else None
        if text is not None:
            self.seen.broken.discard(uid)
            self.seen.finished[uid] = (prompt, text)


def text_of(data: bytes, stream: bool) -> str | None:
    """The reply's text, or None when it is not a complete one."""
    if not stream:
        return str(json.loads(data)["choices"][0]["message"]["content"])
    if not data.endswith(b"data: [DONE]\n\n"):
        return None
    out = ""
    for event in data.split(b"\n\n"):
        payload = event.removeprefix(b"data: ")
        if payload and payload != b"[DONE]":
            chunk = json.loads(payload)
            if "error" in chunk:
                return None
            out += chunk["choices"][0]["delta"].get("content") or ""
    return out


class Stack:
    """`llmtap up` and the processes it runs."""

    def __init__(self, folder: Path, config: Path, port: int) -> None:
        self.folder, self.config, self.port = folder, config, port
        self.launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMTAP_")}
        with (self.folder / "up.log").open("ab") as out:
            argv = [sys.executable, "-m", "llmtap_launcher", "up", "--config", str(self.config)]
            self.launcher = subprocess.Popen(argv, stdout=out, stderr=out, cwd=self.folder, env=env)
        self.wait_serving()

    def wait_serving(self) -> None:
        eventually(self._serving, f"not serving; see {self.folder / 'up.log'}", timeout_s=60)

    def _serving(self) -> bool:
        assert self.launcher is not None
        if self.launcher.poll() is not None:
            raise AssertionError("the launcher ended:\n" + (self.folder / "up.log").read_text()[-3000:])
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "data" / "run" / "state.json").read_text()))

    def pid(self, name: str) -> int | None:
        for process in self.state()["processes"]:
            if process["name"] == name and process.get("pid"):
                return int(process["pid"])
        return None

    def kill(self, name: str) -> bool:
        """kill -9. False when there is no such process just now."""
        assert self.launcher is not None
        if name == "launcher":
            children = [p["pid"] for p in self.state()["processes"] if p.get("pid")]
            self.launcher.kill()
            self.launcher.wait()
            eventually(lambda: not any(alive(pid) for pid in children), "a child outlived its launcher")
            return True
        pid = self.pid(name)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid), f"{name} did not die")
        return True

    def stop(self) -> None:
        if self.launcher is not None and self.launcher.poll() is None:
            self.launcher.terminate()
            self.launcher.wait(timeout=60)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nothing_finished_is_missing_or_twice(tmp_path: Path) -> None:
    port = free_port()
    args = {"tokens-per-second": 300, "ttft-ms": 5, "max-model-len": 1_000_000}
    sims = [{"name": name, "launch": {"engine": "sim", "model": MODEL, "args": args}} for name in "ab"]
    config = {
        "server": {"port": port, "drain_timeout_s": 5},
        "backends": sims,
        "capture": {"dir": str(tmp_path / "data"), "segment_mb": 0.05},  # small segments: many hand-overs
        "routing": {"health_interval_s": 0.5},
        "datasette": {"enabled": False},
        "logging": {"request_log": False},
    }
    path = tmp_path / "llmtap.yaml"
    path.write_text(yaml.safe_dump(config))
    chance = random.Random(20261121)
    stack = Stack(tmp_path, path, port)
    stack.start()
    load = Load(port)
    load.start()
    killed: dict[str, int] = {}
    try:
        lived = 0
        while sum(killed.values()) < ROUNDS:
            goal = len(load.seen.finished) + chance.randrange(5, 25)
            eventually(
                lambda goal=goal: len(load.seen.finished) >= goal or not stack._serving(), "the load stands still", timeout_s=60
            )
            stack.wait_serving()
            target = "launcher" if lived >= ROUNDS_A_LAUNCHER else chance.choice(["gateway", "writer", "a", "b", "launcher"])
            if not stack.kill(target):
                continue
            killed[target] = killed.get(target, 0) + 1
            lived += 1
            if target == "launcher":
                stack.start()
                lived = 0
    finally:
        load.end()
        stack.stop()
    # what a killed writer left behind the next one takes: `up` would start it, this does the same
    subprocess.run([sys.executable, "-m", "llmtap_launcher", "ingest", "--config", str(path)], check=True, cwd=tmp_path)
    check(tmp_path / "data", load.seen)
    assert set(killed) == {"gateway", "writer", "a", "b", "launcher"} or ROUNDS < 20
    assert len(load.seen.finished) > 5 * ROUNDS
    assert sum(prompt.endswith(LONG) for prompt, _ in load.seen.finished.values()) > ROUNDS
    print(f"killed {killed}; {load.seen.sent} sent, {len(load.seen.finished)} finished, {len(load.seen.broken)} broken")


def check(data: Path, seen: Seen) -> None:
    db = sqlite3.connect(f"file:{data / 'capture.db'}?mode=ro", uri=True)
    with contextlib.closing(db):
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        rows = db.execute(
            "SELECT e.uid, e.outcome, i.text, o.text FROM exchanges e"
            " LEFT JOIN messages im ON im.hash = e.input_tip LEFT JOIN bodies i ON i.id = im.body_id"
            " LEFT JOIN messages om ON om.hash = e.output_tip LEFT JOIN bodies o ON o.id = om.body_id"
        ).fetchall()
        by_uid = {uid: (outcome, prompt, text) for uid, outcome, prompt, text in rows}
        assert len(by_uid) == len(rows), "an exchange is there twice"
        missing = [uid for uid in seen.finished if uid not in by_uid]
        assert missing == [], f"{len(missing)} finished exchanges are missing"
        for uid, (prompt, text) in seen.finished.items():
            assert by_uid[uid] == ("ok", prompt, text)
        assert not [uid for uid, (outcome, *_) in by_uid.items() if outcome == "open"]
        broken = {by_uid[uid][0] for uid in seen.broken if uid in by_uid}
        # "ok" is a reply that the gateway had whole when it, or the client's connection, was cut
        assert broken <= {"lost", "upstream_error", "client_abort", "ok", "rejected"}
        assert all(uid in by_uid for uid in seen.broken), "a broken exchange left no trace"
