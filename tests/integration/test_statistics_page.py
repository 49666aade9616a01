"""docs/statistics.md and docs/middleware.md, as they stand there: every command, every program."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmtap_launcher.cli import cli
from support.sim import running_sim
from support.traffic import write

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
STATISTICS, MIDDLEWARE = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("statistics.md", "middleware.md"))


def commands(page: str) -> list[list[str]]:
    """The lines of the page's blocks that begin with llmtap, without what is said of them behind."""
    blocks = [text for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if not language]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("llmtap ")]
    return [shlex.split(re.split(r"\s{3,}", line)[0])[1:] for line in lines]


def test_every_command_of_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "llmtap-data", 150)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["ingest"]).exit_code == 0
    found = commands(STATISTICS)
    assert {words[0] for words in found} == {"analyze", "slow", "compare", "cost"}
    assert len(found) >= 15
    here = {"Qwen/Qwen3-8B": "served-small", "llama-3.1-8b": "served-large", "Qwen/*": "served-*"}
    compared = 0
    for words in found:
        done = CliRunner().invoke(cli, [here.get(word, word) for word in words])
        # of the page's spans of time and tags there is nothing here, and it says so
        nothing = words[0] == "compare" and "nothing was captured of" in done.output
        assert done.exit_code == nothing, (words, done.output)
        compared += words[0] == "compare" and not nothing
    assert compared >= 2
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_the_middlewares_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = re.findall(r"```python\n(.*?)```", MIDDLEWARE, re.DOTALL)
    assert len(programs) == 2
    with running_sim(ttft_ms=1, tokens_per_second=2000) as sim:
        path = os.pathsep.join([str(ROOT / "addons"), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "VLLM_BASE_URL": f"{sim.url}/v1", "PYTHONPATH": path}
        for program in programs:
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            assert len(done.stdout.splitlines()) >= 3
        assert len(sim.requests()) >= 5
    monkeypatch.chdir(tmp_path)
    printed = []
    for words in commands(MIDDLEWARE):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, (words, result.output)
        printed.append(result.stdout)
    first, _, stored, second = printed
    assert "5 requests" in first
    assert "10 records ingested, 0 bad, 0 exchanges lost" in stored
    # the same from the log and from the database, but for where it is
    assert second.replace("/capture.db", "") == first


@pytest.mark.skipif(
    not os.environ.get("LLMTAP_STATISTICS_ROWS"), reason="LLMTAP_STATISTICS_ROWS: how many exchanges to time it on"
)
@pytest.mark.timeout(1800)
def test_speed_and_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/bench/figures.py", "--dir", tmp_path, "--exchanges", os.environ["LLMTAP_STATISTICS_ROWS"]],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
