"""A headless Chromium, driven over its debugging pipe: what a page loads, shows, logs and looks like.

https://chromedevtools.github.io/devtools-protocol/ ; with `--remote-debugging-pipe` messages are JSON ended by a zero byte on the
descriptors 3 (to the browser) and 4 (from it).
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: moves the two descriptors to 3 and 4 and becomes the browser
_LAUNCH = "import os,sys; os.dup2(int(sys.argv[1]),3); os.dup2(int(sys.argv[2]),4); os.execvp(sys.argv[3],sys.argv[3:])"
_TIMEOUT_S = 30.0


def find() -> str | None:
    """The browser's path: $CHROMIUM, else the first of the usual names on the PATH."""
    return os.environ.get("CHROMIUM") or next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. Kept of what happens: `requests` (URLs asked for), `logged` (console, security), `dialogs` (texts of alerts)."""

    def __init__(self, executable: str, profile: Path) -> None:
        self.requests: list[str] = []
        self.logged: list[str] = []
        self.dialogs: list[str] = []
        self._last_id = 0
        self._buffer = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._loaded = False
        self._session: str | None = None
        child_in, self._to = _pipe()
        self._from, child_out = _pipe()
        argv = [executable, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        argv += ["--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-background-networking"]
        if os.geteuid() == 0:
            argv.append("--no-sandbox")  # Chromium refuses to run as root with it
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(child_in), str(child_out), *argv],
            pass_fds=(child_in, child_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)  # its end is the browser's end
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._from)

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Loads a page in a window of that size, to the end of its `load` event."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self._loaded = False
        self._call("Page.navigate", url=url)
        self._pump(lambda: self._loaded)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression (it is not bound by the page's Content-Security-Policy)."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def replace_text(self, element: str, text: str) -> None:
        """Types over all the text of a field or editor; `element` is a JavaScript expression."""
        self._call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.run(f"(e => {{ e.focus(); e.select ? e.select() : getSelection().selectAllChildren(e); }})({element})")
        if text:
            self._call("Input.insertText", text=text)
        else:
            self.run("document.execCommand('delete')")

    def screenshot(self, path: Path) -> None:
        """The window as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        ident = self._send(method, params)
        self._pump(lambda: ident in self._answers)
        answer = self._answers.pop(ident)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _send(self, method: str, params: dict[str, Any]) -> int:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._last_id

    def _pump(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + _TIMEOUT_S
        while not done():
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            piece = os.read(self._from, 1 << 16)
            assert piece, "the browser ended"
            *messages, self._buffer = (self._buffer + piece).split(b"\0")
            for message in messages:
                self._on(json.loads(message))

    def _on(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        params = message.get("params", {})
        match message["method"]:
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(params["message"])
                self._send("Page.handleJavaScriptDialog", {"accept": True})
            case "Log.entryAdded":
                self.logged.append(params["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.logged.append(
                    params["exceptionDetails"].get("text", "") + str(params["exceptionDetails"].get("exception", ""))
                )
            case "Runtime.consoleAPICalled":
                self.logged.append(" ".join(str(a.get("value")) for a in params["args"]))


def _pipe() -> tuple[int, int]:
    """A pipe on descriptors of 10 and above, out of the way of 3 and 4."""
    low = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in low]
    for fd in low:
        os.close(fd)
    return high[0], high[1]
