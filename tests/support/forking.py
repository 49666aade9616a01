"""Gateways and simulated engines as processes of their own that need not import everything again.

Most of what a start costs is importing mitmproxy: about a second of CPU, some hundred times in a run of the tests. So one server
process (multiprocessing's fork server) imports it all once, and each process asked for is a fork of it, with its own arguments,
environment, folder and output. `Forked` behaves as the `subprocess.Popen` of the same command would.
`tests/integration/test_lane_mitmdump.py`, `test_inspecting.py`, `test_launcher.py` and `test_readme.py` start real commands.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import IO, Any

#: command line -> what does it, in a process that has imported it
PROGRAMS = {
    ("-c", "from mitmproxy.tools.main import mitmdump; mitmdump()"): ("mitmproxy.tools.main", "mitmdump"),
    ("-m", "llmtap.master"): ("llmtap.master", "main"),
    ("-m", "llmtap_launcher"): ("llmtap_launcher.cli", "main"),
}
PRELOAD = [
    "mitmproxy.tools.main",
    "mitmproxy.tools.dump",
    "llmtap.chain",
    "llmtap.master",
    "llmtap_launcher.cli.sim",
    "llmtap_launcher.sim.server",
]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


_CONTEXT = _context()


def known(argv: Sequence[str]) -> bool:
    """Whether a command line is one of those that can be forked."""
    return argv[0] == sys.executable and tuple(argv[1:3]) in PROGRAMS


class Forked:
    """`subprocess.Popen(argv, stdout=PIPE, text=True, …)` of a command that `known` knows. `stderr`: a file, else with stdout."""

    def __init__(
        self, argv: Sequence[str], env: dict[str, str], cwd: str | os.PathLike[str], stderr: IO[bytes] | None = None
    ) -> None:
        self.args = list(argv)
        reader, writer = _CONTEXT.Pipe(duplex=False)
        errors = Connection(os.dup(stderr.fileno()), readable=False) if stderr is not None else None
        arguments = (self.args, env, os.fspath(cwd), writer, errors)
        self._process = _CONTEXT.Process(target=_run, args=arguments, name="forked")
        self._process.start()
        writer.close()
        if errors is not None:
            errors.close()
        self.stdout: IO[str] | None = open(os.dup(reader.fileno()), encoding="utf-8", errors="replace")  # noqa: SIM115
        reader.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(argv: list[str], env: dict[str, str], cwd: str, stdout: Connection, stderr: Connection | None) -> None:
    """In the child: becomes the command."""
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno() if stderr is not None else 1, 2)
    stdout.close()
    if stderr is not None:
        stderr.close()
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, function = PROGRAMS[argv[1], argv[2]]
    sys.argv = [argv[2], *argv[3:]]
    program: Any = getattr(__import__(module, fromlist=[function]), function)
    sys.exit(program())
