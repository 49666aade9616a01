"""`llmtap slow` as a user types it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import orjson
import pytest

from support.captures import Captures, weather
from support.command import llmtap


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Captures(tmp_path / "data") as captures:
        weather(captures)
    return tmp_path / "data"


run = partial(llmtap, "slow")


def test_a_table(folder: Path) -> None:
    done = run("--db", str(folder), "--threshold", "600")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{folder}: the 2 slowest by duration\n")
    assert "http://127.0.0.1:8001/-/transcript/" in done.stdout
    assert "| curl -sN http://127.0.0.1:8000/v1/chat/completions" in done.stdout


def test_json_with_the_addresses_of_the_configuration(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "llmtap.yaml"
    config.write_text(f"server: {{host: 0.0.0.0, port: 9000}}\ndatasette: {{port: 9001}}\ncapture: {{dir: {folder}}}\n")
    (row,) = orjson.loads(run("--config", str(config), "--by", "stall", "-n", "1", "--format", "json").stdout)
    assert row["url"] == f"http://127.0.0.1:9001/-/transcript/{row['uid']}"
    assert "http://127.0.0.1:9000/v1/chat/completions" in row["replay"]
    assert row["itl_max_ms"] == 210.0 and "authorization" not in row["replay"]
    keyed = tmp_path / "keyed.yaml"
    keyed.write_text(config.read_text() + "auth: {enabled: true, keys: [{name: k, key: sk-x}]}\n")
    (row,) = orjson.loads(run("--config", str(keyed), "-n", "1", "--format", "json").stdout)
    assert '-H "authorization: Bearer $OPENAI_API_KEY"' in row["replay"] and "sk-x" not in row["replay"]
    lines = run("--config", str(config), "--format", "jsonl").stdout.splitlines()
    assert [orjson.loads(line)["duration_ms"] for line in lines] == [3912.5, 1312.7, 512.0]


def test_nothing(folder: Path) -> None:
    assert run("--db", str(folder), "--threshold", "9999999").stdout == f"{folder}: no request in this selection was that slow\n"
    assert run("--by", "weight").exit_code == 2
