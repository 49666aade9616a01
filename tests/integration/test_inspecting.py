"""docs/inspecting.md: every command on the page is run, in its order, and does what the page says."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import httpx
import pytest

from support.gateway import ROOT, free_port
from support.sim import running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
PAGE = (ROOT / "docs" / "inspecting.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.M)
BODY = {"model": "sim-small", "messages": [{"role": "user", "content": "hello"}], "stream": True}


class Terminal:
    """A command on a terminal of its own; `shown` is everything it wrote."""

    def __init__(self, argv: list[str], folder: Path) -> None:
        self._screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
        # mitmproxy's tools as this environment has them
        tool = f"from mitmproxy.tools.main import {argv[0]}; {argv[0]}()"
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMTAP_")} | {"TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", tool, *argv[1:]], stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, env=env
        )
        os.close(terminal)
        self.shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._screen, 65536):
                self.shown.extend(data)
        except OSError:
            return  # its last user is gone

    def end(self, timeout_s: float = 30) -> int:
        """Its exit status."""
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(10)
            os.close(self._screen)


def up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.HTTPError:
        return False


def test_every_command_of_the_page(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "addons").symlink_to(ROOT / "addons")
    (script,) = re.findall(r"```python\n(.+?)```", PAGE, re.S)
    (tmp_path / "mine.py").write_text(script, encoding="utf-8")
    assert len(COMMANDS) == 7
    with running_sim(model="sim-small", tokens_per_second=400, ttft_ms=2) as sim:
        settings = f"server: {{port: {port}}}\nbackends: [{{name: a, url: '{sim.url}'}}]\ncapture: {{dir: data}}\n"
        (tmp_path / "llmtap.yaml").write_text(settings, encoding="utf-8")
        for command in COMMANDS:
            sim.reset()
            argv = [*shlex.split(command), "--set", f"confdir={tmp_path}/mitmproxy"]
            if argv[0] == "mitmweb":
                argv += ["--set", f"web_port={free_port()}", "--set", "web_open_browser=false"]
            terminal = Terminal(argv, tmp_path)
            try:
                ends = "-n" in argv or "-C" in argv
                if not ends:
                    eventually(lambda: up(url), f"{command}: not up")
                    held = "intercept" in command
                    if held:
                        with pytest.raises(httpx.ReadTimeout):
                            httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=1.0)
                        assert sim.requests("/v1/chat/completions") == []
                    else:
                        reply = httpx.post(f"{url}/v1/chat/completions", json=BODY)
                        assert reply.text.endswith("data: [DONE]\n\n"), command
                        tenant = sim.requests("/v1/chat/completions")[-1]["headers"].get("x-tenant")
                        assert tenant == ("blue" if "mine.py" in command else None)
                    terminal.process.send_signal(signal.SIGTERM)
            finally:
                status = terminal.end()
            assert status == 0, (command, bytes(terminal.shown))
            assert b"Traceback" not in terminal.shown, (command, bytes(terminal.shown))
            if "-C" in argv:
                assert len(sim.requests("/v1/chat/completions")) == 1
            if "-n" in argv:
                assert b"/v1/chat/completions" in terminal.shown
            if argv[0] == "mitmweb":
                assert b"?token=" in terminal.shown
