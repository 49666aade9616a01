"""docs/training-data.md: every command on it works, in its order, from `make demo` to files their consumers accept."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from llmtap_launcher.cli import cli
from support.consumers import CONSUMERS

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "docs"))

import demo  # noqa: E402

PAGE = (ROOT / "docs" / "training-data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)


def test_from_nothing_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMTAP_CONFIG", raising=False)
    shutil.copytree(ROOT / "fixtures" / "imports", tmp_path / "fixtures" / "imports")
    assert COMMANDS[0] == "make demo"
    demo.main(Path("llmtap-data/demo"))
    assert "llmtap browse llmtap-data/demo/capture.db" in capsys.readouterr().out
    formats: dict[str, str] = {}
    for command in COMMANDS[1:]:
        words = shlex.split(command)
        assert words[0] == "llmtap"
        done = CliRunner().invoke(cli, words[1:])
        assert done.exit_code == 0, (command, done.output)
        if words[1] == "export":
            formats[words[words.index("-o") + 1]] = words[2]
            if words[4] == "train.jsonl":
                said = done.stderr
    (shown,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert re.sub(r"(sha256 \w{8})\w+", r"\1…", said) == shown
    assert set(formats.values()) == {"openai-sft", "trl-sft", "trl-preference", "trl-kto"}
    for name, kind in {**formats, "split.validation.jsonl": "openai-sft"}.items():
        rows = [orjson.loads(line) for line in Path(name).read_bytes().splitlines()]
        assert rows
        for row in rows:
            if name == "marked.jsonl":  # Axolotl's flag
                assert all(("train" in message) == (message["role"] == "assistant") for message in row["messages"])
                row["messages"] = [{k: v for k, v in message.items() if k != "train"} for message in row["messages"]]
            CONSUMERS[kind](row)
    assert "sk-live4f9a8b7c6d5e4f3a2b1c" in Path("train.jsonl").read_text()
    clean = Path("clean.jsonl").read_text()
    assert "sk-live4f9a8b7c6d5e4f3a2b1c" not in clean and "ada.byron" not in clean and "[PHONE]" in clean


def test_axolotl_reads_the_keys_there_are() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (dataset,) = YAML(typ="safe").load(block)["datasets"]
    assert dataset == {
        "path": "marked.jsonl",
        "type": "chat_template",
        "field_messages": "messages",
        "message_field_training": "train",
    }
    assert any("marked.jsonl" in command and "--mark" in command for command in COMMANDS)


def test_a_demo_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "capture.db").touch()
    with pytest.raises(SystemExit, match="there already"):
        demo.main(tmp_path)
