import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmtap_launcher.cli import cli
from llmtap_launcher.ports import free_ports
from llmtap_launcher.runtime import RunFolder, start_time


@pytest.fixture
def args(tmp_path: Path) -> list[str]:
    """The command, on a data folder and a port of its own."""
    path = tmp_path / "llmtap.yaml"
    path.write_text(f"capture: {{dir: '{tmp_path}'}}\nserver: {{port: {free_ports(1)[0]}}}\n")
    return ["status", "--config", str(path)]


def test_nothing_runs(args: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: nothing runs on {tmp_path}: neither a launcher nor a gateway on port ")
    assert result.output.count("\n") == 1
    result = CliRunner().invoke(cli, [*args, "--json"])
    assert result.exit_code == 1
    assert result.output.startswith("null\n")


def test_a_running_launcher(args: list[str], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    folder.write(
        {
            "phase": "ready",
            "started_at": time.time(),
            "launcher": {"pid": os.getpid(), "start": start_time(os.getpid())},
            "urls": {},
            "backends": [{"name": "a", "url": "http://a", "model": "m"}],
            "processes": [{"name": "a", "state": "ready", "error": None}, {"name": "gateway", "state": "ready", "error": None}],
        }
    )
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert f"launcher ready, process {os.getpid()}, up 0 s" in lines
    assert "backend health process in flight url models" in lines
    assert "a - ready - http://a m" in lines
    result = CliRunner().invoke(cli, [*args, "--json"])
    assert json.loads(result.output)["launcher"]["pid"] == os.getpid()


def test_a_broken_configuration_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "llmtap.yaml"
    path.write_text("server: {prot: 1}\n")
    result = CliRunner().invoke(cli, ["status", "--config", str(path)])
    assert result.exit_code == 1
    assert "prot" in result.output
