"""A real `llmtap up` as a process, for tests: ready when entered, and nothing of it left when left, whatever happened."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmtap_launcher import guard
from support.wait import eventually

ROOT = Path(__file__).parents[2]
LLMTAP = [sys.executable, "-m", "llmtap_launcher"]
READY = "Ctrl-C stops everything"


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """One in which this checkout's sources are found, and no configuration but the test's."""
    path = os.pathsep.join([str(ROOT / "addons"), str(ROOT / "launcher")])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LLMTAP_")}
    return {**clean, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(more or {})}


def llmtap(*args: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run([*LLMTAP, *args], cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=60)


@dataclass
class Up:
    """A running launcher. `out` and `log` are the lines of stdout and stderr so far."""

    process: subprocess.Popen[str]
    data: Path
    out: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    run: str = ""

    @property
    def state(self) -> dict[str, Any]:
        """`state.json`, read now."""
        return dict(json.loads((self.data / "run" / "state.json").read_text("utf-8")))

    @property
    def url(self) -> str:
        return str(self.state["urls"]["gateway"])

    def pid(self, name: str) -> int:
        """Process id of one of its processes, once it has one."""
        return eventually(lambda: next(p["pid"] for p in self.state["processes"] if p["name"] == name), f"{name} does not run")

    def pids(self) -> dict[str, int]:
        """Name -> process id of all that run."""
        return {p["name"]: p["pid"] for p in self.state["processes"] if p["pid"] is not None}

    def ready(self) -> None:
        """Until the table is printed."""

        def shown() -> bool:
            assert self.process.poll() is None, "it ended:\n" + "\n".join(self.out + self.log)
            return READY in self.out

        eventually(shown, "not ready:\n" + "\n".join(self.out + self.log), timeout_s=60)
        self.run = self.state["launcher"]["run"]

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        """Signal it and wait; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def left(self) -> list[str]:
        """Command lines of processes that bear this run's mark or its guard's name, zombies apart."""
        found = []
        for pid in [*guard.marked(self.run), *guards(self.run)]:
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


def guards(run: str) -> list[int]:
    """Process ids of the guard of a run (its environment bears no mark; its command line does)."""
    found = []
    for pid, _ in guard.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if len(words) > 4 and words[3].endswith(b"guard.py") and words[4] == run.encode():
                found.append(pid)
    return found


@contextlib.contextmanager
def running_up(
    folder: Path, *args: str, config: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, ready: bool = True
) -> Iterator[Up]:
    """`llmtap up ARGS` in `folder`, on free ports. `config` is merged into its llmtap.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    whole: dict[str, Any] = {"server": {"port": 0}, "datasette": {"port": 0}, "capture": {"dir": str(folder / "data")}}
    for section, value in (config or {}).items():
        whole[section] = {**whole[section], **value} if section in whole else value
    (folder / "llmtap.yaml").write_text(yaml.safe_dump(whole), "utf-8")
    process = subprocess.Popen(
        [*LLMTAP, "up", *args],
        cwd=folder,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a test's Ctrl-C must not stop it before it is looked after
    )
    up = Up(process, Path(whole["capture"]["dir"]))
    readers = [
        threading.Thread(target=lambda: up.out.extend(line.rstrip("\n") for line in process.stdout or ()), daemon=True),
        threading.Thread(target=lambda: up.log.extend(line.rstrip("\n") for line in process.stderr or ()), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        if ready:
            up.ready()
        yield up
    finally:
        with contextlib.suppress(OSError, ValueError, KeyError):
            up.run = up.run or up.state["launcher"]["run"]
        if process.poll() is None:
            process.kill()
        process.wait()
        if up.run:
            guard.end_all({}, up.run, 1.0)
        for reader in readers:
            reader.join(timeout=10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def plain(text: str) -> bool:
    """Whether text has no terminal control in it."""
    return re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text) is None
