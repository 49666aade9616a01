"""What the commands share: which file `--config` means, and how a mistake ends."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli.common import config_option, load_config, user_errors


@click.command()
@config_option
def show(config_path: Path | None) -> None:
    click.echo(config_path)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMTAP_CONFIG", raising=False)
    return CliRunner()


def test_option_then_variable_then_folder_then_defaults(runner: CliRunner, tmp_path: Path) -> None:
    env = {"LLMTAP_CONFIG": "from-env.yaml"}
    assert runner.invoke(show, ["--config", "x.yaml"], env=env).output == "x.yaml\n"
    assert runner.invoke(show, [], env=env).output == "from-env.yaml\n"
    assert runner.invoke(show, []).output == "\n"
    (tmp_path / "llmtap.yaml").touch()
    assert runner.invoke(show, []).output == "llmtap.yaml\n"


def test_the_help_names_the_defaults(runner: CliRunner) -> None:
    assert "$LLMTAP_CONFIG, else ./llmtap.yaml" in " ".join(runner.invoke(show, ["--help"]).output.split())


def test_loading_uses_environment_and_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMTAP_SERVER__PORT", "9000")
    assert load_config(None).server.port == 9000
    assert load_config(None, {"server.port": 9001}).server.port == 9001


def test_a_mistake_is_its_text_on_stderr_and_status_1(runner: CliRunner) -> None:
    @click.command()
    def fail() -> None:
        with user_errors():
            raise LlmtapError("f.yaml:1: no")

    result = runner.invoke(fail, [])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "f.yaml:1: no\n")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), user_errors():
        raise KeyError
