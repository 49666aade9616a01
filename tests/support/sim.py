"""A simulated engine as a process of its own, for tests: on a free port, ready when entered, gone when left.

with running_sim(model="a", ttft_ms=0) as sim:
    httpx.get(sim.url + "/v1/models")
    sim.fail("http_503", times=1)
    assert sim.requests("/v1/chat/completions")[-1]["aborted"]
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from support.forking import Forked

ROOT = Path(__file__).parents[2]


@dataclass
class SimHandle:
    """A running simulated engine."""

    process: Forked
    port: int
    model: str
    _stderr: IO[bytes]

    @property
    def url(self) -> str:
        """Its base, without a slash at the end and without /v1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def stderr(self) -> str:
        """What it has written to standard error so far."""
        self._stderr.flush()
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def requests(self, path: str | None = None) -> list[dict[str, Any]]:
        """The last requests that reached it, oldest first: method, path, headers, body, status, tokens, finished, aborted."""
        return list(httpx.get(f"{self.url}/sim/requests", params={"path": path} if path else None).raise_for_status().json())

    def state(self) -> dict[str, Any]:
        """running, waiting, aborted, dead, refusing, faults."""
        return dict(httpx.get(f"{self.url}/sim/state").raise_for_status().json())

    def fail(self, kind: str, times: int | None = 1, **rule: Any) -> None:
        """Puts a fault in force (`KIND` or `KIND=ARG`); `times=None`: until `reset()`. `path`, `probability`: see /sim/fail."""
        httpx.post(f"{self.url}/sim/fail", json={"kind": kind, "times": times, **rule}).raise_for_status()

    def reset(self) -> None:
        """No faults, a living engine, an empty request log."""
        httpx.post(f"{self.url}/sim/reset").raise_for_status()

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and waits for the end; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def sim_command(*, model: str = "sim-small", port: int = 0, **options: Any) -> list[str]:
    """The command line of a sim. `tokens_per_second=50` becomes `--tokens-per-second 50`; True is a flag, a list repeats."""
    command = [sys.executable, "-m", "llmtap_launcher", "sim", "--port", str(port), "--model", model]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        for item in value if isinstance(value, list | tuple) else [value]:
            command += [flag] if item is True else [flag, str(item)]
    return command


def sim_environment() -> dict[str, str]:
    """An environment in which the sources of this checkout are found."""
    path = os.pathsep.join([str(ROOT / "addons"), str(ROOT / "launcher")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def running_sim(model: str = "sim-small", **options: Any) -> Iterator[SimHandle]:
    """Starts a sim and waits for its ready line; `options` as for `sim_command`. Whatever happens, it is gone afterwards."""
    with tempfile.TemporaryFile() as errors:
        process = Forked(sim_command(model=model, **options), sim_environment(), ROOT, errors)
        assert process.stdout is not None
        handle = SimHandle(process, 0, model, errors)
        try:
            line = process.stdout.readline()
            assert line.startswith("llmtap sim:"), f"the sim did not start: {line!r} {handle.stderr()!r}"
            handle.port = int(line.rpartition(":")[2])
            yield handle
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
            sys.stderr.write(handle.stderr())  # pytest shows it beside a failure


@contextlib.asynccontextmanager
async def running_sim_async(model: str = "sim-small", **options: Any) -> AsyncIterator[SimHandle]:
    """`running_sim` for async tests: starting does not block the loop."""
    with contextlib.ExitStack() as stack:
        yield await asyncio.to_thread(stack.enter_context, running_sim(model, **options))
