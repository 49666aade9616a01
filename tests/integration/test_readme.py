"""The README's first screen, word for word: its commands, its Python, its output, its pictures, its links."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.gateway import free_port
from support.wait import eventually

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SHAPE = [(re.compile(r":\d{4,5}\b"), ":PORT"), (re.compile(r" +"), " ")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shape(text: str) -> list[str]:
    """Lines without what differs from run to run: ports and the padding they cause."""
    for pattern, replacement in SHAPE:
        text = pattern.sub(replacement, text)
    return [line.strip() for line in text.splitlines() if line.strip()]


class Up:
    def __init__(self, port: int, pages: int, output: Path) -> None:
        self.port, self.pages, self.output = port, pages, output

    def local(self, text: str) -> str:
        """The README's text with the ports of this run."""
        return text.replace(":8000", f":{self.port}").replace(":8001", f":{self.pages}")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`make up` does `llmtap up --dry-run`: that, on free ports."""
    folder = tmp_path_factory.mktemp("up")
    running = Up(free_port(), free_port(), folder / "output")
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMTAP_")}
    env |= {"LLMTAP_SERVER__PORT": str(running.port), "LLMTAP_DATASETTE__PORT": str(running.pages)}
    with running.output.open("wb") as out:
        argv = [sys.executable, "-m", "llmtap_launcher", "up", "--dry-run"]
        process = subprocess.Popen(argv, cwd=folder, env=env, stdout=out, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: "Ctrl-C" in running.output.read_text() or process.poll() is not None, "no table of URLs", timeout_s=60)
        assert process.poll() is None
        yield running
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_the_output_shown_is_the_output(up: Up) -> None:
    first = blocks("console")[0]
    shown = [line for line in first.splitlines() if not line.startswith("$")]
    printed = shape(up.output.read_text())
    assert shape(up.local("\n".join(shown))) == printed[: len(shown)]


def test_make_up_is_what_was_tested() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^up: venv .*\n\t@?\$\(BIN\)/llmtap up --dry-run$", makefile, re.MULTILINE)


def test_the_python_streams_and_is_on_the_page_within_a_second(up: Up) -> None:
    code = blocks("python")[0]
    done = subprocess.run([sys.executable, "-c", up.local(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    reply = done.stdout
    assert len(reply) > 20

    def on_the_page() -> dict[str, object] | None:
        rows = httpx.get(f"http://127.0.0.1:{up.pages}/capture/requests.json?_shape=array&_sort_desc=id").json()
        return next((r for r in rows if r["prompt"] == "Tell me about rivers" and r["outcome"] == "ok"), None)

    row = eventually(on_the_page, "not on the page", timeout_s=1.0)
    assert reply.startswith(str(row["reply"]).rstrip("…")[:50])
    for column in ("prompt_tokens", "completion_tokens", "ttft_ms", "duration_ms"):
        assert row[column], column
    page = httpx.get(f"http://127.0.0.1:{up.pages}/", follow_redirects=True).text
    assert "Tell me about rivers" in page


def test_the_line_to_try_works(up: Up) -> None:
    line = next(line for line in up.output.read_text().splitlines() if line.startswith("try: "))
    done = subprocess.run(line.removeprefix("try: "), shell=True, capture_output=True, text=True, timeout=60)
    assert '"chat.completion"' in done.stdout


@pytest.mark.parametrize(
    "line", [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
)
def test_every_command_shown_exists(line: str) -> None:
    words = line.partition("#")[0].split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "llmtap":
        options = [w for w in words if w.startswith("--")]
        command = [w for w in words[1:] if re.fullmatch(r"[a-z-]+", w) and not w.startswith("-")][:2]
        if command[0] != "engine":
            command = command[:1]
        argv = [sys.executable, "-m", "llmtap_launcher", *command[: 2 if command[0] == "engine" else 1], "--help"]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0
        assert all(option in done.stdout for option in options)
    else:
        assert words[:3] == ["mitmdump", "-s", "addons/gateway.py"]  # run by test_gateway.py
        assert (ROOT / words[2]).exists() and shutil.which("mitmdump", path=Path(sys.executable).parent)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
