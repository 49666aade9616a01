"""docs/store.md: every command in it works, in its order, on a folder that was captured."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from llmtap.core.config import Config
from llmtap.policy.capturing import CaptureRules
from llmtap_launcher.store.options import Options
from support.captures import Captures, weather

pytestmark = pytest.mark.integration
PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    return [re.split(r" {3,}", line)[0] for line in PAGE.splitlines() if line.startswith(("llmtap ", "zstd "))]


def test_the_commands_work_in_their_order(tmp_path: Path) -> None:
    with Captures(tmp_path / "llmtap-data", Options(archive_days=3)) as captures:
        weather(captures)
    with Captures(tmp_path / "llmtap-data", Options(archive_days=3)):
        pass  # the worker has ended: its file is archived
    (archived,) = (tmp_path / "llmtap-data" / "archive").iterdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMTAP_")}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    ran = 0
    for command in commands():
        if command.startswith("zstd") and shutil.which("zstd") is None:
            continue
        words = command.replace("FILE.jsonl.zst", archived.name).replace("llmtap ", f"{sys.executable} -m llmtap_launcher ", 1)
        words = words.replace(f"{sys.executable} -m llmtap_launcher data", "llmtap-data") if command.startswith("zstd") else words
        done = subprocess.run(words, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout.strip(), command
        ran += 1
    assert ran >= 4


def test_the_examples_are_configurations() -> None:
    recorded, priced = (
        Config.model_validate(YAML(typ="safe").load(block))
        for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    )
    assert [price.model for price in priced.prices] == ["Qwen/*", "llama-*"]
    rules = CaptureRules(recorded.capture)
    assert rules.mode(None, "legal-eu", "m", "x") == "off"
    assert rules.mode(None, "a", "llama-medical", "x") == "metadata"
